"""Loops that are left under a test on a tensor, as loops with a flag: a graph's loop cannot be left from its middle."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import libcst as cst
import libcst.matchers as m

from trueport.errors import RewriteError
from trueport.rewrite.exits import (
    LOOP,
    MARK,
    RETURN,
    Statement,
    block_of,
    first_line,
    has,
    mark_of,
    marked,
    replaced,
    structured,
    suite_of,
    unmarked,
)
from trueport.rewrite.mark import call, thunk

Namer = Callable[[str], str]
"""Gives a name that is not taken yet."""


def flagged(block: Sequence[Statement], file: str, new: Namer) -> list[Statement]:
    """``block`` without ``return``, ``break`` and ``continue`` under a test on a tensor within its loops."""
    result: list[Statement] = []
    for statement in block:
        if isinstance(statement, (cst.For, cst.While)):
            result += _loop(statement, file, new)
        else:
            result.append(_inner(statement, file, new))
    return result


def _inner(statement: Statement, file: str, new: Namer) -> Statement:
    """A compound statement with its own loops treated."""
    changes: dict[str, object] = {}
    body = getattr(statement, "body", None)
    if isinstance(body, cst.IndentedBlock) and not isinstance(statement, (cst.FunctionDef, cst.ClassDef)):
        changes["body"] = body.with_changes(body=flagged(block_of(body), file, new))
        orelse = getattr(statement, "orelse", None)
        if isinstance(orelse, cst.If):
            changes["orelse"] = _inner(orelse, file, new)
        elif isinstance(orelse, cst.Else):
            changes["orelse"] = orelse.with_changes(body=suite_of(flagged(block_of(orelse.body), file, new)))
    return statement.with_changes(**changes) if changes else statement


def _loop(loop: cst.For | cst.While, file: str, new: Namer) -> list[Statement]:
    body = flagged(block_of(loop.body), file, new)
    loop = loop.with_changes(body=suite_of(body))
    line = mark_of(loop)
    tests = [node for node in m.findall(loop.body, m.If()) if mark_of(node) is not None]
    leaving = any(has(test, (*RETURN, *LOOP)) for test in tests)
    if not leaving and (line is None or not has(loop.body, (*RETURN, *LOOP))):
        return [loop]
    line = line or first_line(loop)
    if loop.orelse is not None:
        raise RewriteError(
            f"{file}:{line}: a loop with `else` is left on a tensor's value",
            "Set a flag in the loop, and test it after.",
        )
    stop = new(f"_stop_{line}")
    before, after = [f"{stop} = False"], list[Statement]()
    if has(loop.body, RETURN):
        done, result = new(f"_done_{line}"), new(f"_result_{line}")
        before.append(f"{done} = False")
        after.append(cst.parse_statement(f"if {MARK}({done}, {line}):\n    return {result}"))
        body = replaced(body, lambda node: _kept_for_later(node, done, result), loops=False)
    body = replaced(structured(body, LOOP, file), lambda node: _raised(node, stop), loops=False)
    stopped = call("negated", cst.Name(stop), line=line)
    if isinstance(loop, cst.While):
        test = call("both", stopped, thunk(unmarked(loop.test)), line=line)
        made: Statement = loop.with_changes(test=marked(test, line), body=suite_of(body))
    else:
        guard = cst.If(marked(stopped, line), suite_of(body))
        # Outside of an export the flag is a plain bool, and the loop really ends.
        end = cst.parse_statement(f"if {stop} is True:\n    break")
        made = loop.with_changes(body=suite_of([guard, end] if mark_of(loop) is None else [guard]))
    return [*(cst.parse_statement(text) for text in before), made, *after]


def _kept_for_later(node: cst.BaseSmallStatement, done: str, result: str) -> list[str] | None:
    """``return value`` as a value to return after the loop."""
    if not isinstance(node, cst.Return):
        return None
    value = cst.Module([]).code_for_node(node.value) if node.value else "None"
    return [f"{result} = {value}", f"{done} = True", "break"]


def _raised(node: cst.BaseSmallStatement, stop: str) -> list[str] | None:
    """``break`` as a flag; ``continue`` as nothing, for nothing follows it any more."""
    if isinstance(node, cst.Break):
        return [f"{stop} = True"]
    return ["pass"] if isinstance(node, cst.Continue) else None
