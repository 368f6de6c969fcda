"""A function with marked constructs as a function without them: branches and bodies become functions of their own."""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Sequence

import libcst as cst
import libcst.matchers as m

from trueport.errors import RewriteError
from trueport.rewrite.exits import (
    MARK,
    RETURN,
    Statement,
    block_of,
    else_of,
    has,
    leaves,
    mark_of,
    structured,
    suite_of,
    unmarked,
)
from trueport.rewrite.flags import flagged
from trueport.rewrite.mark import call
from trueport.rewrite.names import (
    appended,
    assigned,
    expression,
    indexed,
    inner_scopes,
    needed,
    parsed,
    reads,
    stored_attributes,
)

IMPORT = "from trueport.rewrite import flow as _flow"


def converted(function: cst.FunctionDef, file: str) -> cst.FunctionDef:
    """The function without a construct that reads a tensor's value.

    Raises:
        RewriteError: a construct has no counterpart; the message names file, line, construct and what to write instead.
    """
    return _Conversion(function, file).run()


class _Conversion:
    """Works from the last statement to the first: what a branch must give back depends on what is read later."""

    def __init__(self, function: cst.FunctionDef, file: str) -> None:
        self.function = function
        self.file = file
        self.taken: set[str] = set()
        self.depth = 0
        (tree,) = parsed([function.with_changes(decorators=[], leading_lines=[])])
        assert isinstance(tree, (ast.FunctionDef, ast.AsyncFunctionDef))
        self.tree = tree
        arguments = self.tree.args
        every = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
        every += [extra for extra in (arguments.vararg, arguments.kwarg) if extra]
        self.parameters = [argument.arg for argument in every]
        # Read whenever the inner function is called: behind every assignment, that is.
        self.shared = reads(inner_scopes(self.tree)) & {*self.parameters, *assigned(self.tree.body)}

    def run(self) -> cst.FunctionDef:
        """The whole function."""
        self._refuse_function()
        self.function = _with_joins(self.function)
        block = flagged(block_of(self.function.body), self.file, self._new)
        if any(mark_of(node) is not None and has(node, RETURN) for node in m.findall(self.function, m.If())):
            block = block if leaves(block, RETURN) else [*block, cst.parse_statement("return None")]
            block = structured(block, RETURN, self.file)
        new = self.block(block, set(), set(self.parameters))
        start = 1 if m.matches(new[0], m.SimpleStatementLine([m.Expr(m.SimpleString())])) else 0
        new.insert(start, cst.parse_statement(IMPORT))
        result: object = self.function.with_changes(body=cst.IndentedBlock(new))
        if self.parameters:
            result = m.replace(
                cst.ensure_type(result, cst.FunctionDef),
                m.Call(func=m.Name("super"), args=[]),
                cst.parse_expression(f"super(__class__, {self.parameters[0]})"),
            )
        assert isinstance(result, cst.FunctionDef)
        return result

    def refuse(self, line: int, problem: str, remedy: str) -> RewriteError:
        """The refusal of a construct."""
        return RewriteError(f"{self.file}:{line}: {problem}", remedy)

    def _refuse_function(self) -> None:
        line = _first(self.function)
        if self.function.asynchronous or any(isinstance(n, (ast.Yield, ast.YieldFrom)) for n in ast.walk(self.tree)):
            raise self.refuse(line, f"{self.tree.name} is a generator or a coroutine", "Make it a plain function.")
        for node in ast.walk(self.tree):
            if isinstance(node, (ast.Global, ast.Nonlocal)):
                raise self.refuse(
                    line,
                    f"`{ast.unparse(node)}` in {self.tree.name}, which reads a tensor's value",
                    "Pass the variable in and return it.",
                )

    # Blocks, from their end.

    def block(self, statements: Sequence[Statement], live: set[str], defined: set[str]) -> list[Statement]:
        """Statements without marks; ``live`` are the names needed behind them, ``defined`` those assigned before."""
        known = [set(defined)]
        for statement in statements:
            known.append(known[-1] | _sure(statement))
        result: list[Statement] = []
        for statement, before in zip(reversed(statements), reversed(known[:-1]), strict=True):
            result = [*self.statement(statement, live, before), *result]
            live = needed(parsed([statement]), live)
        return result

    def statement(self, node: Statement, live: set[str], defined: set[str]) -> list[Statement]:
        """One statement; ``live`` are the names needed behind it."""
        line = mark_of(node)
        if isinstance(node, cst.If) and line is not None:
            return self.branch(node, line, live, defined)
        if isinstance(node, (cst.For, cst.While)) and line is not None:
            return self.loop(node, line, live, defined)
        if self.depth and m.matches(node, m.SimpleStatementLine([m.Del()])):
            return []  # frees memory, which a graph does on its own
        if isinstance(node, (cst.FunctionDef, cst.ClassDef)):
            return [self._nested_function(node)]
        if not isinstance(node, (cst.If, cst.For, cst.While, cst.With, cst.Try)) or not _has_mark(node):
            return [node]
        inner = live
        if isinstance(node, (cst.For, cst.While)):
            inner = live | reads(parsed([node]))
            defined = defined | (
                set(assigned(ast.parse(cst.Module([]).code_for_node(node.target))))
                if isinstance(node, cst.For)
                else set()
            )
        if isinstance(node, cst.Try):
            return [self._trying(node, live, defined)]
        changes: dict[str, object] = {"body": suite_of(self.block(block_of(node.body), inner, defined))}
        orelse = getattr(node, "orelse", None)
        if isinstance(orelse, cst.If):
            changes["orelse"] = cst.Else(suite_of(self.statement(orelse, inner, defined)))
        elif isinstance(orelse, cst.Else):
            changes["orelse"] = orelse.with_changes(body=suite_of(self.block(block_of(orelse.body), inner, defined)))
        return [node.with_changes(**changes)]

    def _trying(self, node: cst.Try, live: set[str], defined: set[str]) -> Statement:
        """A ``try`` with marks in any of its blocks, each of which may be followed by any other."""
        inner = live | reads(parsed([node]))

        def suite(body: cst.BaseSuite) -> cst.IndentedBlock:
            return suite_of(self.block(block_of(body), inner, defined))

        parts = {"orelse": node.orelse, "finalbody": node.finalbody}
        changes = {name: part.with_changes(body=suite(part.body)) for name, part in parts.items() if part is not None}
        handlers = [handler.with_changes(body=suite(handler.body)) for handler in node.handlers]
        return node.with_changes(body=suite(node.body), handlers=handlers, **changes)

    def _nested_function(self, node: cst.FunctionDef | cst.ClassDef) -> Statement:
        if isinstance(node, cst.ClassDef) or not _has_mark(node):
            return node
        inner = _Conversion(node, self.file).run()
        body = [part for part in block_of(inner.body) if cst.Module([]).code_for_node(part).strip() != IMPORT]
        return inner.with_changes(body=cst.IndentedBlock(body))

    # Branches.

    def branch(self, node: cst.If, line: int, live: set[str], defined: set[str]) -> list[Statement]:
        """A marked ``if``."""
        test = unmarked(node.test)
        then, orelse = block_of(node.body), else_of(node)
        if leaves(then, ()) and not has(node.body, RETURN):
            return self._raising(node, test, then, orelse, line, live, defined)
        if leaves(orelse, ()) and not any(has(part, RETURN) for part in orelse):
            turned = node.with_changes(body=suite_of(orelse), orelse=None)
            return self._raising(turned, call("negated", test, line=line), orelse, then, line, live, defined)
        self._refuse_effects([*then, *orelse], line, "a branch")
        if has(node, RETURN):
            if not (leaves(then, RETURN) and leaves(orelse, RETURN)):
                raise self.refuse(line, "this `if` leaves its function on one way only", "Return on both ways.")
            made = [self.returning(way, kind, line, defined) for way, kind in ((then, "then"), (orelse, "else"))]
            functions = [function for function, _ in made]
            names = [cst.Name(name) for _, name in made]
            chosen = cst.Return(call("choose", test, *names, line=line))
            return [*functions, cst.SimpleStatementLine([chosen], leading_lines=node.leading_lines)]
        trees = [parsed(then), parsed(orelse)]
        written = _unique([*assigned(trees[0]), *assigned(trees[1])])
        changed = _unique([name for tree in trees for name in (*appended(tree), *indexed(tree))])
        grown = [name for name in changed if self._is_local(name)]
        names_out = [name for name in written if name in live | self.shared]
        names_out += [name for name in grown if name not in names_out]
        own = needed(trees[0], set()) | needed(trees[1], set())
        extra = [name for name in written if name not in names_out and name in own]
        parts: list[Statement] = []
        functions_named = []
        for way, kind in ((then, "then"), (orelse, "else")):
            made_function, name = self.giving(way, kind, line, names_out, extra, defined)
            parts.append(made_function)
            functions_named.append(cst.Name(name))
        return [*parts, self._assignment("cond", [test, *functions_named], names_out, line, defined, node)]

    def _raising(
        self, node: cst.If, test: cst.BaseExpression, raising: Sequence[Statement], rest: Sequence[Statement],
        line: int, live: set[str], defined: set[str],
    ) -> list[Statement]:  # fmt: skip
        checked = node.with_changes(test=call("refused", test, line=line), body=suite_of(raising), orelse=None)
        return [checked, *self.block(rest, live, defined)]

    def _is_local(self, name: str) -> bool:
        return name in self.parameters or name in assigned(self.tree.body)

    def _refuse_effects(self, block: Sequence[Statement], line: int, place: str) -> None:
        tree = parsed(block)
        if attributes := stored_attributes(tree):
            raise self.refuse(
                line,
                f"{attributes[0]} is assigned in {place} that depends on a tensor's value, and an object cannot differ "
                "from run to run of one graph",
                "Assign to a local variable there, return it, and store it outside of the export.",
            )
        for node in (part for statement in tree for part in ast.walk(statement)):
            if isinstance(node, ast.Delete) and all(isinstance(target, ast.Name) for target in node.targets):
                continue
            if isinstance(node, (ast.Delete, ast.Try, ast.Yield)):
                raise self.refuse(
                    line,
                    f"`{ast.unparse(node).splitlines()[0]}` in {place} that depends on a tensor's value",
                    f"Move it out of {place}.",
                )

    def within(self, block: Sequence[Statement], live: set[str], defined: set[str]) -> list[Statement]:
        """The statements of a branch or a loop's body."""
        self.depth += 1
        try:
            return self.block(block, live, defined)
        finally:
            self.depth -= 1

    def giving(
        self,
        block: Sequence[Statement],
        kind: str,
        line: int,
        names: Sequence[str],
        extra: Sequence[str],
        defined: set[str],
    ) -> tuple[Statement, str]:
        """A branch as a function from its variables to their new values, and the function's name."""
        name = self._new(f"_{kind}_{line}")
        body = self.within(
            [part for part in block if not _is_pass(part)], set(names), defined | set(names) | set(extra)
        )
        arguments = [*names, *(f"{each}={_read(each, defined)}" for each in extra)]
        values = f"return ({', '.join(names)}{',' if len(names) == 1 else ''})"
        return _function(name, arguments, [*body, cst.parse_statement(values)]), name

    def returning(self, block: Sequence[Statement], kind: str, line: int, defined: set[str]) -> tuple[Statement, str]:
        """A branch that returns, as a function without arguments."""
        name = self._new(f"_{kind}_{line}")
        tree = parsed(block)
        own = [each for each in _unique(assigned(tree)) if each in needed(tree, set())]
        body = self.within(block, set(), defined | set(own))
        return _function(name, [f"{each}={_read(each, defined)}" for each in own], body), name

    # Loops.

    def loop(self, node: cst.For | cst.While, line: int, live: set[str], defined: set[str]) -> list[Statement]:
        """A marked ``for`` or ``while``."""
        if node.orelse is not None:
            raise self.refuse(
                line, "a loop with `else` depends on a tensor's value", "Set a flag in the loop, and test it after."
            )
        body = block_of(node.body)
        self._refuse_effects(body, line, "a loop")
        tree = parsed(body)
        head = unmarked(node.iter if isinstance(node, cst.For) else node.test)
        item = (
            _unique(assigned(ast.parse(f"{cst.Module([]).code_for_node(node.target)} = 0")))
            if isinstance(node, cst.For)
            else []
        )
        again = needed(tree, set()) - set(item)
        again |= reads(expression(head)) if isinstance(node, cst.While) else set()
        again |= self.shared
        names = [name for name in _unique([*item, *assigned(tree)]) if name in live or name in again]
        grown = [name for name in appended(tree) if self._is_local(name) and name not in names]
        names += [name for name in grown if name not in item]
        after = set(names) | again
        if isinstance(node, cst.While):
            asks, test = self._new(f"_test_{line}"), cst.SimpleStatementLine([cst.Return(head)])
            step, name = self.giving(body, "body", line, names, [], defined | after)
            parts = [_function(asks, names, [test]), step]
            return [
                *parts,
                self._assignment("while_loop", [cst.Name(asks), cst.Name(name)], names, line, defined, node),
            ]
        name = self._new(f"_body_{line}")
        target = cst.Module([]).code_for_node(node.target)
        inner = self.within(body, set(names), defined | set(names) | set(item))
        values = cst.parse_statement(f"return ({', '.join(names)}{',' if len(names) == 1 else ''})")
        unpacked = cst.parse_statement(f"{target} = _item")
        step = _function(name, ["_item", *names], [unpacked, *inner, values])
        return [step, self._assignment("every", [head, cst.Name(name)], names, line, defined, node)]

    def _assignment(
        self, runtime: str, arguments: Sequence[cst.BaseExpression], names: Sequence[str], line: int,
        defined: set[str], node: cst.If | cst.For | cst.While,
    ) -> Statement:  # fmt: skip
        """``(names) = _flow.runtime(arguments, names, values, line)``."""
        comma = "," if len(names) == 1 else ""
        quoted = "(" + ", ".join(f'"{name}"' for name in names) + comma + ")"
        values = "(" + ", ".join(_read(name, defined) for name in names) + comma + ")"
        called = call(runtime, *arguments, cst.parse_expression(quoted), cst.parse_expression(values), line=line)
        text = cst.Module([]).code_for_node(called)
        assigned_text = f"({', '.join(names)}{comma}) = {text}" if names else text
        made = cst.parse_statement(assigned_text)
        return made.with_changes(leading_lines=node.leading_lines)  # type: ignore[return-value]

    def _new(self, name: str) -> str:
        """A name that is not taken yet."""
        candidate, number = name, 2
        while candidate in self.taken:
            candidate, number = f"{name}_{number}", number + 1
        self.taken.add(candidate)
        return candidate


JOINS = m.Call(
    func=m.Attribute(attr=m.Name("stack") | m.Name("cat") | m.Name("concat")), args=[m.AtLeastN(m.Arg(), n=1)]
)
LISTED = m.Call(func=m.Attribute(value=m.Name("_flow"), attr=m.Name("listed")))


def _with_joins(function: cst.FunctionDef) -> cst.FunctionDef:
    """``torch.stack`` and ``torch.cat`` of lists that a marked loop fills, as calls that also take such a list."""
    filled: set[str] = set()
    for loop in m.findall(function, m.For()):
        if mark_of(loop) is not None:
            filled |= set(appended(parsed([loop])))  # type: ignore[list-item]
    for assign in m.findall(function, m.Assign(value=LISTED)):
        filled |= {node.value for node in m.findall(assign.targets[0], m.Name())}  # type: ignore[attr-defined]

    def join(node: cst.CSTNode, _: object) -> cst.CSTNode:
        assert isinstance(node, cst.Call)
        first = node.args[0].value
        if not m.matches(first, LISTED) and not (isinstance(first, cst.Name) and first.value in filled):
            return node
        return cst.Call(
            cst.parse_expression("_flow.joined"), [cst.Arg(node.func, comma=cst.MaybeSentinel.DEFAULT), *node.args]
        )

    replaced_function = m.replace(function, JOINS, join)
    assert isinstance(replaced_function, cst.FunctionDef)
    return replaced_function


def _read(name: str, defined: set[str]) -> str:
    return name if name in defined else f"_flow.local(lambda: {name})"


def _unique(names: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _sure(statement: Statement) -> set[str]:
    from trueport.rewrite.names import kills

    return set().union(*(kills(part) for part in parsed([statement])))


def _has_mark(node: cst.CSTNode) -> bool:
    return bool(m.findall(node, m.Name(MARK)))


def _first(node: cst.CSTNode) -> int:
    from trueport.rewrite.exits import first_line

    return first_line(node)


def _is_pass(node: Statement) -> bool:
    return m.matches(node, m.SimpleStatementLine([m.Pass()]))


def _function(name: str, arguments: Sequence[str], body: Sequence[Statement]) -> Statement:
    made = cst.parse_statement(textwrap.dedent(f"def {name}({', '.join(arguments)}):\n    pass"))
    assert isinstance(made, cst.FunctionDef)
    return made.with_changes(body=suite_of(body))
