"""Which local variables a piece of code reads, assigns, writes to and needs: asked of its ``ast``."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

import libcst as cst

APPENDING = {"append", "extend", "update", "insert", "add", "setdefault", "pop", "remove", "clear", "discard"}
"""Methods of lists, dicts and sets that change them."""

SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def parsed(nodes: Sequence[cst.CSTNode]) -> list[ast.stmt]:
    """Statements of libcst as those of ast."""
    return ast.parse(cst.Module(body=list(nodes)).code).body  # type: ignore[arg-type]


def expression(node: cst.BaseExpression) -> ast.expr:
    """An expression of libcst as that of ast."""
    return ast.parse(f"({cst.Module([]).code_for_node(node)})", mode="eval").body


def reads(tree: ast.AST | Iterable[ast.AST]) -> set[str]:
    """Names that are read anywhere within, nested functions included."""
    return {
        node.id for root in _roots(tree) for node in ast.walk(root) if isinstance(node, ast.Name) and _is_read(node)
    } | {
        node.target.id
        for root in _roots(tree)
        for node in ast.walk(root)
        if isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name)
    }


def inner_scopes(tree: ast.AST) -> list[ast.AST]:
    """The functions, lambdas and classes within a function."""
    return [node for node in ast.walk(tree) if isinstance(node, SCOPES) and node is not tree]


def _is_read(node: ast.Name) -> bool:
    return isinstance(node.ctx, (ast.Load, ast.Del))


def _roots(tree: ast.AST | Iterable[ast.AST]) -> list[ast.AST]:
    return [tree] if isinstance(tree, ast.AST) else list(tree)


def assigned(tree: ast.AST | Iterable[ast.AST]) -> list[str]:
    """Names that are assigned within, in order of first appearance; not those of nested scopes."""
    found: dict[str, None] = {}

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found[node.id] = None
        elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            found[node.name] = None
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update({(alias.asname or alias.name.partition(".")[0]): None for alias in node.names})
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found[node.name] = None
        if isinstance(node, SCOPES):
            return
        if isinstance(node, COMPREHENSIONS):
            for part in ast.walk(node):
                if isinstance(part, ast.NamedExpr):
                    visit(part.target)
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    for root in _roots(tree):
        visit(root)
    return list(found)


def indexed(tree: ast.AST | Iterable[ast.AST]) -> list[str]:
    """Names ``x`` in ``x[...] = value``."""
    nodes = [node for root in _roots(tree) for node in ast.walk(root) if isinstance(node, ast.Subscript)]
    stores = [node.value for node in nodes if isinstance(node.ctx, ast.Store)]
    return list(dict.fromkeys(node.id for node in stores if isinstance(node, ast.Name)))


def appended(tree: ast.AST | Iterable[ast.AST]) -> list[str]:
    """Names of containers that a method of theirs changes."""
    found: dict[str, None] = {}
    for root in _roots(tree):
        for node in ast.walk(root):
            method = node.func if isinstance(node, ast.Call) else None
            if isinstance(method, ast.Attribute) and method.attr in APPENDING and isinstance(method.value, ast.Name):
                found[method.value.id] = None
    return list(found)


def stored_attributes(tree: ast.AST | Iterable[ast.AST]) -> list[str]:
    """Attributes that are assigned within, as ``self.count``."""
    return [
        ast.unparse(node)
        for root in _roots(tree)
        for node in ast.walk(root)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del))
    ]


def kills(statement: ast.stmt) -> set[str]:
    """Names that a statement is sure to assign, and does not read before."""
    if isinstance(statement, ast.Assign):
        return {
            node.id
            for target in statement.targets
            for node in ast.walk(target)
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
        }
    if isinstance(statement, (ast.AnnAssign, ast.FunctionDef)):
        return set(assigned(statement)) if not isinstance(statement, ast.AnnAssign) or statement.value else set()
    if isinstance(statement, ast.If):
        return _surely(statement.body) & _surely(statement.orelse)
    if isinstance(statement, ast.With):
        return _surely(statement.body)
    return set()


def _surely(block: Sequence[ast.stmt]) -> set[str]:
    return set().union(*(kills(statement) for statement in block)) if block else set()


def needed(block: Sequence[ast.stmt], after: set[str]) -> set[str]:
    """Names whose value before ``block`` matters, when those in ``after`` matter behind it."""
    live = set(after)
    for statement in reversed(block):
        if isinstance(statement, ast.If):
            live = needed(statement.body, live) | needed(statement.orelse, live) | reads(statement.test)
        elif isinstance(statement, (ast.For, ast.While)):
            head = statement.iter if isinstance(statement, ast.For) else statement.test
            live = live | _upward(statement.body) | reads(head) | needed(statement.orelse, live)
        elif isinstance(statement, (ast.Return, ast.Raise)):
            live = reads(statement)
        else:
            live = (live - kills(statement)) | reads(statement)
    return live


def _upward(block: Sequence[ast.stmt]) -> set[str]:
    """Names that an iteration reads before it assigns them."""
    return needed(block, set())
