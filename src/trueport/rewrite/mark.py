"""From the places where tensor values were read to the constructs that read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import libcst as cst
import libcst.matchers as m
from libcst.metadata import CodeRange, MetadataWrapper, PositionProvider

from trueport.errors import RewriteError
from trueport.rewrite.exits import marked
from trueport.rewrite.watch import Read

TESTS = ("bool", "item", "comparison")
"""Reads that make a test depend on a tensor."""

READERS = {"int": "integer", "float": "floating", "bool": "boolean"}
QUANTIFIERS = {"any": "any_of", "all": "all_of"}
ARITHMETIC = {
    cst.Add: "added",
    cst.AddAssign: "added_to",
    cst.Multiply: "multiplied",
    cst.MultiplyAssign: "multiplied_by",
}
"""Operators that mean something else for two bool tensors than for two of Python's bools: `True + True` is 2."""
SOURCES = {"range": "ranged", "enumerate": "enumerated", "zip": "zipped"}


@dataclass(frozen=True)
class Marked:
    """A function whose constructs are marked.

    ``constructs`` are (line, kind) of these; ``strays`` the reads that no construct explains.
    """

    function: cst.FunctionDef
    constructs: tuple[tuple[int, str], ...]
    strays: tuple[Read, ...]


def mark(text: str, reads: Sequence[Read], first_line: int) -> Marked:
    """Mark every construct of a function's source ``text`` in which one of ``reads`` happened.

    ``first_line`` is the file's line on which ``text`` starts; positions count from there.
    """
    wrapper = MetadataWrapper(cst.parse_module(text))
    marker = _Marker(wrapper, reads, first_line)
    changed = wrapper.module.visit(marker)
    assert isinstance(changed, cst.Module)
    function = next(part for part in changed.body if isinstance(part, cst.FunctionDef))
    strays = tuple(read for index, read in enumerate(reads) if index not in marker.explained)
    return Marked(function, tuple(sorted(set(marker.constructs))), strays)


class _Marker(cst.CSTTransformer):
    """Puts the runtime's calls in the place of expressions, and marks on statements."""

    def __init__(self, wrapper: MetadataWrapper, reads: Sequence[Read], first_line: int) -> None:
        super().__init__()
        self.positions = wrapper.resolve(PositionProvider)
        self.reads = reads
        self.offset = first_line - 1
        self.explained: set[int] = set()
        self.constructs: list[tuple[int, str]] = []
        self.numbers = self._numbers(wrapper.module)
        self.tests: set[cst.CSTNode] = set()
        self.operators: set[cst.CSTNode] = set()

    def _numbers(self, module: cst.Module) -> set[str]:
        """Variables that hold a number read from a tensor, such as ``n`` after ``n = lengths.max().item()``."""
        found: set[str] = set()
        for node in m.findall(module, m.Assign()):
            assert isinstance(node, cst.Assign)
            used = {name.value for name in m.findall(node.value, m.Name())}  # type: ignore[attr-defined]
            calls = [call for call in m.findall(node.value, m.Call()) if self._kind_of_reader(call)]
            if used & found or any(self._touching(call, ("item",)) for call in calls) or self._gives_bool(node.value):
                found |= {name.value for target in node.targets for name in m.findall(target.target, m.Name())}  # type: ignore[attr-defined]
        for loop in m.findall(module, m.While()):
            assert isinstance(loop, cst.While)
            asked = {name.value for name in m.findall(loop.test, m.Name())}  # type: ignore[attr-defined]
            if asked & found or self._touching(loop.test, TESTS):  # what it counts is known when the graph runs
                counted = m.findall(loop.body, m.AugAssign(target=m.Name()))
                found |= {node.target.value for node in counted}  # type: ignore[attr-defined]
        return found

    def _gives_bool(self, node: cst.BaseExpression) -> bool:
        """Whether an expression is one of Python's bools made of a tensor: ``not t``, ``bool(t)``, ``any(...)``, ``in``."""
        if _is_negation(node) or _is_membership(node):
            return self._touching(node, TESTS)
        if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in (*QUANTIFIERS, "bool"):
            return self._touching(node, TESTS)
        parts = [node.left, node.right] if isinstance(node, (cst.BooleanOperation, cst.BinaryOperation)) else []
        return any(map(self._gives_bool, parts))

    def _refuse(self, node: cst.CSTNode, problem: str, remedy: str) -> RewriteError:
        return RewriteError(f"{self.reads[0].file}:{self._line(node)}: {problem}", remedy)

    def _thunk(self, original: cst.BaseExpression, updated: cst.BaseExpression) -> cst.Lambda:
        """``lambda: updated``, whose assignments would be the lambda's own."""
        if m.findall(original, m.NamedExpr()):
            raise self._refuse(
                original,
                "`:=` in a part of a test or choice that a tensor's value may leave out",
                "Assign on a line of its own.",
            )
        return thunk(updated)

    def _line(self, node: cst.CSTNode) -> int:
        return self.positions[node].start.line + self.offset

    def _touching(self, node: cst.CSTNode, kinds: tuple[str, ...]) -> bool:
        """Whether a read of these kinds happened in ``node``, or in a statement that holds it.

        CPython 3.11 gives some calls the position of their whole statement.
        """
        span: CodeRange = self.positions[node]
        start = (span.start.line + self.offset, span.start.column)
        end = (span.end.line + self.offset, span.end.column)
        found = False
        for index, read in enumerate(self.reads):
            within = start <= read.start and read.end <= end
            around = read.start <= start and end <= read.end
            if read.kind in kinds and (within or around):
                self.explained.add(index)
                found = True
        return found

    def _found(self, node: cst.CSTNode, part: cst.CSTNode, kind: str, kinds: tuple[str, ...] = ("bool",)) -> int | None:
        if not self._touching(part, kinds):
            return None
        self.constructs.append((self._line(node), kind))
        return self._line(node)

    def _reads_number(self, node: cst.CSTNode) -> bool:
        return any(name.value in self.numbers for name in m.findall(node, m.Name()))  # type: ignore[attr-defined]

    def _tested(self, node: cst.CSTNode, part: cst.CSTNode, kind: str) -> int | None:
        line = self._found(node, part, kind, TESTS)
        if line is None and self._reads_number(part):
            self.constructs.append((self._line(node), kind))
            line = self._line(node)
        return line

    def on_visit(self, node: cst.CSTNode) -> bool:
        """Before a node is entered: which operators are parts of a test, and which of a test on a tensor.

        CPython gives a jump within ``a and not b`` the position of ``a``, so a test is taken as a whole.
        """
        if isinstance(node, (cst.If, cst.While, cst.IfExp, cst.Assert)):
            operators = _operators(node.test)
            self.tests |= operators
            if self._touching(node.test, TESTS) or self._reads_number(node.test):
                self.operators |= operators
        elif _is_operator(node) and node not in self.tests:
            operators = _operators(node)
            self.tests |= operators - {node} if isinstance(node, cst.BooleanOperation) else operators
            if self._touching(node, ("bool", "comparison")):
                self.operators |= operators
        return super().on_visit(node)

    def leave_If(self, original_node: cst.If, updated_node: cst.If) -> cst.If:
        line = self._tested(original_node, original_node.test, "if")
        return updated_node if line is None else updated_node.with_changes(test=marked(updated_node.test, line))

    def leave_While(self, original_node: cst.While, updated_node: cst.While) -> cst.While:
        line = self._tested(original_node, original_node.test, "while")
        if line is not None and m.findall(original_node.test, m.NamedExpr()):
            raise self._refuse(
                original_node,
                "`:=` in the test of a `while` that depends on a tensor's value",
                "Assign on a line of its own, before the loop and at the end of its body.",
            )
        return updated_node if line is None else updated_node.with_changes(test=marked(updated_node.test, line))

    def leave_Assert(self, original_node: cst.Assert, updated_node: cst.Assert) -> cst.Assert:
        line = self._tested(original_node, original_node.test, "assert")
        return (
            updated_node
            if line is None
            else updated_node.with_changes(test=call("holds", updated_node.test, line=line))
        )

    def leave_For(self, original_node: cst.For, updated_node: cst.For) -> cst.For:
        line = self._found(original_node, original_node.iter, "for", ("iter", "item"))
        if line is None and self._reads_number(original_node.iter):
            line = self._line(original_node)
            self.constructs.append((line, "for"))
        if line is None:
            return updated_node
        return updated_node.with_changes(iter=marked(_source(updated_node.iter), line))

    def leave_ListComp(self, original_node: cst.ListComp, updated_node: cst.ListComp) -> cst.BaseExpression:
        part = original_node.for_in
        if part.ifs or part.inner_for_in or part.asynchronous:
            return updated_node
        line = self._found(original_node, part.iter, "list comprehension", ("iter", "item"))
        if line is None and not self._reads_number(part.iter):
            return updated_node
        line = line or self._line(original_node)
        self.constructs.append((line, "list comprehension"))
        self._thunk(original_node.elt, updated_node.elt)
        target = updated_node.for_in.target
        if isinstance(target, cst.Name):
            function = f"lambda {target.value}: {_code(updated_node.elt)}"
        else:
            function = f"lambda _item: (lambda {_code(target).strip('()')}: {_code(updated_node.elt)})(*_item)"
        return call("listed", _source(updated_node.for_in.iter), cst.parse_expression(function), line=line)

    def leave_IfExp(self, original_node: cst.IfExp, updated_node: cst.IfExp) -> cst.BaseExpression:
        line = self._tested(original_node, original_node.test, "ternary")
        if line is None:
            return updated_node
        return call(
            "choose",
            updated_node.test,
            self._thunk(original_node.body, updated_node.body),
            self._thunk(original_node.orelse, updated_node.orelse),
            line=line,
        )

    def leave_BooleanOperation(
        self, original_node: cst.BooleanOperation, updated_node: cst.BooleanOperation
    ) -> cst.BaseExpression:
        if original_node not in self.operators:
            return updated_node
        line, kind = self._line(original_node), "and" if isinstance(original_node.operator, cst.And) else "or"
        self.constructs.append((line, kind))
        name = "both" if kind == "and" else "either"
        if original_node not in self.tests:
            name += "_value"
        return call(name, updated_node.left, self._thunk(original_node.right, updated_node.right), line=line)

    def leave_Comparison(self, original_node: cst.Comparison, updated_node: cst.Comparison) -> cst.BaseExpression:
        targets = updated_node.comparisons
        if _is_membership(original_node):
            line = self._found(original_node, original_node, "in", TESTS)
            if line is None:
                return updated_node
            made = call("contained", updated_node.left, targets[0].comparator, line=line)
            return made if isinstance(targets[0].operator, cst.In) else call("negated", made, line=line)
        if _is_identity(original_node):
            if not self._touching(original_node, TESTS) and not self._reads_number(original_node):
                return updated_node
            made = call("identical", updated_node.left, targets[0].comparator)
            same = isinstance(targets[0].operator, cst.Is)
            return made if same else call("negated", made, line=self._line(original_node))
        if len(targets) < 2 or (line := self._found(original_node, original_node, "chained comparison", TESTS)) is None:
            return updated_node
        spelled = ", ".join(f'"{_code(part.operator).strip()}"' for part in original_node.comparisons)
        values = zip([original_node.left, *(part.comparator for part in original_node.comparisons)],
                     [updated_node.left, *(part.comparator for part in targets)], strict=True)  # fmt: skip
        thunks = ", ".join(f"({_code(self._thunk(old, new))})" for old, new in values)
        return call("chained", cst.parse_expression(f"({spelled},)"), cst.parse_expression(f"({thunks},)"), line=line)

    def leave_BinaryOperation(
        self, original_node: cst.BinaryOperation, updated_node: cst.BinaryOperation
    ) -> cst.BaseExpression:
        kind: Any = type(original_node.operator)
        name = ARITHMETIC.get(kind)
        if name is None or not (self._gives_bool(original_node) or self._reads_item(original_node)):
            return updated_node
        return call(name, updated_node.left, updated_node.right)

    def leave_AugAssign(self, original_node: cst.AugAssign, updated_node: cst.AugAssign) -> cst.AugAssign | cst.Assign:
        kind: Any = type(original_node.operator)
        name = ARITHMETIC.get(kind)
        if name is None or not isinstance(original_node.target, cst.Name):
            return updated_node
        if not (self._gives_bool(original_node.value) or self._reads_item(original_node.value)):
            return updated_node
        made = call(name, updated_node.target, updated_node.value)
        return cst.Assign([cst.AssignTarget(updated_node.target)], made)

    def _reads_item(self, node: cst.CSTNode) -> bool:
        readers = [part for part in m.findall(node, m.Call()) if self._kind_of_reader(part)]
        return self._reads_number(node) or any(self._touching(part, ("item",)) for part in readers)

    def leave_Match(self, original_node: cst.Match, updated_node: cst.Match) -> cst.Match:
        if self._touching(original_node.subject, TESTS) or self._reads_number(original_node.subject):
            raise self._refuse(original_node, "`match` on a tensor's value", "Write `if` and `elif`.")
        return updated_node

    def leave_UnaryOperation(
        self, original_node: cst.UnaryOperation, updated_node: cst.UnaryOperation
    ) -> cst.BaseExpression:
        if original_node not in self.operators:
            return updated_node
        line = self._line(original_node)
        self.constructs.append((line, "not"))
        return call("negated", updated_node.expression, line=line)

    def _kind_of_reader(self, node: cst.CSTNode) -> str | None:
        if m.matches(node, m.Call(func=m.Name("int") | m.Name("float") | m.Name("bool"), args=[m.Arg()])):
            return READERS[node.func.value]  # type: ignore[attr-defined]
        return "number" if m.matches(node, m.Call(func=m.Attribute(attr=m.Name("item")), args=[])) else None

    def leave_Call(self, original_node: cst.Call, updated_node: cst.Call) -> cst.BaseExpression:
        quantifier = _quantifier(original_node)
        if quantifier is not None:
            line = self._found(original_node, original_node, f"{original_node.func.value}()", (*TESTS, "iter"))  # type: ignore[attr-defined]
            given = updated_node.args[0].value
            if isinstance(given, cst.GeneratorExp) and not given.lpar:
                given = given.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()])
            return updated_node if line is None else call(quantifier, given, line=line)
        kind = self._kind_of_reader(original_node)
        kinds = ("bool",) if kind == "boolean" else ("item",)
        if kind is None or (line := self._found(original_node, original_node, _spelling(original_node), kinds)) is None:
            return updated_node
        if kind == "number":
            return call("number", updated_node.func.value)  # type: ignore[attr-defined]
        return call(kind, updated_node.args[0].value, line=line if kind == "boolean" else None)


def _quantifier(node: cst.Call) -> str | None:
    """The counterpart of ``any(...)`` and ``all(...)``; None of those whose generator chooses its items by a test."""
    if not m.matches(node, m.Call(func=m.Name("any") | m.Name("all"), args=[m.Arg()])):
        return None
    given = node.args[0].value
    chooses = isinstance(given, cst.GeneratorExp) and m.findall(given, m.CompIf())
    return None if chooses else QUANTIFIERS[node.func.value]  # type: ignore[attr-defined]


def _is_negation(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.UnaryOperation) and isinstance(node.operator, cst.Not)


def _is_membership(node: cst.CSTNode) -> bool:
    kinds = m.In() | m.NotIn()
    return m.matches(node, m.Comparison(comparisons=[m.ComparisonTarget(operator=kinds)]))


def _is_identity(node: cst.CSTNode) -> bool:
    """``x is True`` and the like."""
    target = m.ComparisonTarget(operator=m.Is() | m.IsNot(), comparator=m.Name("True") | m.Name("False"))
    return m.matches(node, m.Comparison(comparisons=[target]))


def _code(node: cst.CSTNode) -> str:
    return cst.Module([]).code_for_node(node)


def _is_operator(node: cst.CSTNode) -> bool:
    return isinstance(node, cst.BooleanOperation) or _is_negation(node)


def _operators(node: cst.CSTNode) -> set[cst.CSTNode]:
    """``and``, ``or`` and ``not`` that make up a test."""
    if isinstance(node, cst.BooleanOperation):
        return {node} | _operators(node.left) | _operators(node.right)
    return {node} | _operators(node.expression) if _is_operator(node) else set()  # type: ignore[attr-defined]


def _spelling(node: cst.Call) -> str:
    return f"{node.func.value}()" if isinstance(node.func, cst.Name) else ".item()"


def _source(node: cst.BaseExpression) -> cst.BaseExpression:
    """``range``, ``enumerate`` and ``zip`` as their counterparts, which take tensors."""
    if isinstance(node, cst.Call) and isinstance(node.func, cst.Name) and node.func.value in SOURCES:
        inner = [arg.with_changes(value=_source(arg.value)) for arg in node.args]
        return node.with_changes(func=runtime(SOURCES[node.func.value]), args=inner)
    return node


def runtime(name: str) -> cst.Attribute:
    """``_flow.name``."""
    return cst.Attribute(cst.Name("_flow"), cst.Name(name))


def thunk(node: cst.BaseExpression) -> cst.Lambda:
    """``lambda: node``."""
    return cst.Lambda(cst.Parameters(), node)


def call(name: str, *args: cst.BaseExpression, line: int | None = None) -> cst.Call:
    """``_flow.name(*args, line)``."""
    given = [cst.Arg(arg.with_changes(lpar=[], rpar=[]) if isinstance(arg, cst.Lambda) else arg) for arg in args]
    if line is not None:
        given.append(cst.Arg(cst.Integer(str(line))))
    return cst.Call(runtime(name), given)
