"""``return``, ``break`` and ``continue`` under a test: what follows moves into the branches that do not leave.

    if test:                    if test:
        return a                    return a
    rest            becomes     else:
    return b                        rest
                                    return b

so that in the end no branch leaves from its middle. A loop that is left gets a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import libcst as cst
import libcst.matchers as m

from trueport.errors import RewriteError

Statement = cst.BaseStatement
RETURN, LOOP = (cst.Return,), (cst.Break, cst.Continue)
MARK = "__reads_a_tensor__"
"""Wraps the test (or the iterable) of each construct that reads a tensor's value: ``if __reads_a_tensor__(test, line):``.

It is part of the tree, so that no rebuilding loses it, and gone in the end.
"""


def block_of(suite: cst.BaseSuite) -> list[Statement]:
    """The statements of a suite; ``if a: b`` on one line as well."""
    if isinstance(suite, cst.IndentedBlock):
        return list(suite.body)
    assert isinstance(suite, cst.SimpleStatementSuite)
    return [cst.SimpleStatementLine([small]) for small in suite.body]


def suite_of(statements: Sequence[Statement]) -> cst.IndentedBlock:
    """An indented suite; ``pass`` where there is nothing."""
    return cst.IndentedBlock(list(statements) or [cst.parse_statement("pass")])


def else_of(node: cst.If) -> list[Statement]:
    """What happens otherwise, an ``elif`` as an ``if`` within."""
    if node.orelse is None:
        return []
    return [node.orelse] if isinstance(node.orelse, cst.If) else block_of(node.orelse.body)


def has(node: cst.CSTNode, kinds: tuple[type[cst.CSTNode], ...]) -> bool:
    """Whether a node leaves its function (or its loop, for kinds of loops) somewhere; nested scopes are their own."""
    if isinstance(node, kinds):
        return True
    if isinstance(node, (cst.FunctionDef, cst.Lambda, cst.ClassDef)):
        return False
    if isinstance(node, (cst.For, cst.While)):
        kinds = tuple(kind for kind in kinds if kind not in LOOP)
    return bool(kinds) and any(has(child, kinds) for child in node.children)


def leaves(block: Sequence[Statement], kinds: tuple[type[cst.CSTNode], ...]) -> bool:
    """Whether the end of ``block`` is never reached."""
    if not block:
        return False
    last = block[-1]
    if isinstance(last, cst.SimpleStatementLine):
        return isinstance(last.body[-1], (*kinds, cst.Raise))
    if isinstance(last, cst.If):
        return leaves(block_of(last.body), kinds) and leaves(else_of(last), kinds)
    return isinstance(last, cst.With) and leaves(block_of(last.body), kinds)


def structured(block: Sequence[Statement], kinds: tuple[type[cst.CSTNode], ...], file: str) -> list[Statement]:
    """``block`` with no statement behind a marked ``if`` that leaves.

    Raises:
        RewriteError: a ``with`` or ``try`` is left from within, and something follows it.
    """

    def visit(statements: Sequence[Statement]) -> list[Statement]:
        for index, statement in enumerate(statements):
            before, rest = list(statements[:index]), list(statements[index + 1 :])
            if isinstance(statement, cst.If) and _splits(statement, kinds):
                ways = (block_of(statement.body), else_of(statement))
                then, orelse = (visit(way if leaves(way, kinds) else [*way, *rest]) for way in ways)
                otherwise = cst.Else(suite_of(orelse)) if orelse else None
                return [*before, statement.with_changes(body=suite_of(then), orelse=otherwise)]
            if isinstance(statement, (cst.With, cst.Try)) and _splits(statement, kinds):
                inner = visit(block_of(statement.body)) if isinstance(statement, cst.With) else []
                if not leaves(inner, kinds):
                    raise RewriteError(
                        f"{file}:{first_line(statement)}: a `{'with' if isinstance(statement, cst.With) else 'try'}` is "
                        "left from within an `if` on a tensor",
                        "Assign to a variable there, and leave after the block.",
                    )
                return [*before, statement.with_changes(body=suite_of(inner))]
        return list(statements)

    return visit(block)


def _splits(node: cst.CSTNode, kinds: tuple[type[cst.CSTNode], ...]) -> bool:
    """Whether a marked ``if`` within leaves."""
    if not has(node, kinds):
        return False
    if isinstance(node, cst.If) and mark_of(node) is not None:
        return True
    inner = tuple(kind for kind in kinds if kind not in LOOP) if isinstance(node, (cst.For, cst.While)) else kinds
    return any(_splits(child, inner) for child in _nested(node))


def mark_of(node: cst.CSTNode) -> int | None:
    """The line of a construct that reads a tensor's value; None for any other."""
    head = node.iter if isinstance(node, cst.For) else getattr(node, "test", None)
    if isinstance(head, cst.Call) and m.matches(head, m.Call(func=m.Name(MARK))):
        return int(cst.ensure_type(head.args[1].value, cst.Integer).value)
    return None


def marked(head: cst.BaseExpression, line: int) -> cst.Call:
    """A test or an iterable, marked."""
    arguments = [cst.Arg(head), cst.Arg(cst.Integer(str(line)))]
    return cst.Call(cst.Name(MARK), arguments)


def unmarked(head: cst.BaseExpression) -> cst.BaseExpression:
    """The test or iterable without its mark."""
    return head.args[0].value if m.matches(head, m.Call(func=m.Name(MARK))) else head  # type: ignore[attr-defined]


def first_line(node: cst.CSTNode) -> int:
    """The line of the first marked construct within."""
    line = mark_of(node)
    if line is not None:
        return line
    return next((found for child in node.children if (found := first_line(child))), 0)


def _nested(node: cst.CSTNode) -> list[cst.CSTNode]:
    """Statements directly within a compound one."""
    found: list[cst.CSTNode] = []
    for child in node.children:
        if isinstance(child, (cst.BaseSuite, cst.Else, cst.Finally, cst.ExceptHandler)):
            found += [part for part in child.children if isinstance(part, cst.BaseStatement)]
            found += _nested(child) if not isinstance(child, cst.BaseSuite) else []
        elif isinstance(child, cst.BaseStatement):
            found.append(child)
    return found


def replaced(
    block: Sequence[Statement], new: Callable[[cst.BaseSmallStatement], list[str] | None], *, loops: bool
) -> list[Statement]:
    """``block`` with small statements replaced by others, given as text; ``loops`` says whether to enter loops."""

    class Replacer(cst.CSTTransformer):
        def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
            return False

        def visit_For(self, node: cst.For) -> bool:
            return loops

        def visit_While(self, node: cst.While) -> bool:
            return loops

        def leave_SimpleStatementLine(
            self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
        ) -> cst.BaseStatement | cst.FlattenSentinel[cst.BaseStatement]:
            text = new(original_node.body[-1])
            if text is None:
                return updated_node
            before = [updated_node.with_changes(body=updated_node.body[:-1])] if len(updated_node.body) > 1 else []
            return cst.FlattenSentinel([*before, *(cst.parse_statement(line) for line in text)])

    changed = cst.Module(list(block)).visit(Replacer())  # type: ignore[arg-type]
    assert isinstance(changed, cst.Module)
    return list(changed.body)  # type: ignore[arg-type]
