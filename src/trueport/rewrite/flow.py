"""What rewritten functions call. Outside of an export each of these is the Python that it replaced.

Every decision is made when the call runs: a test that turns out to be a plain bool takes one branch, a loop over a plain
number of items is unrolled. So a rewritten function computes what the original computes, whoever calls it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch

from trueport.rewrite.branch import predicate, traced_cond
from trueport.rewrite.loop import traced_for, traced_while
from trueport.rewrite.region import is_traced, probe
from trueport.rewrite.sources import Items, items
from trueport.rewrite.stacked import joined
from trueport.rewrite.values import UNDEFINED

REWRITTEN = r" \([^()]*, rewritten\)$"
"""What the file name of a rewritten function ends with, in tracebacks."""

__all__ = [
    "boolean",
    "both",
    "both_value",
    "choose",
    "cond",
    "either",
    "either_value",
    "enumerated",
    "every",
    "floating",
    "holds",
    "integer",
    "joined",
    "listed",
    "local",
    "negated",
    "number",
    "ranged",
    "refused",
    "while_loop",
    "zipped",
]


def _where(line: int) -> str:
    """File and line of the original, for the function that called the caller."""
    return f"{re.sub(REWRITTEN, '', sys._getframe(2).f_code.co_filename)}:{line}"


def local(read: Callable[[], Any]) -> Any:
    """A local variable's value, or ``UNDEFINED``."""
    try:
        return read()
    except NameError:
        return UNDEFINED


def cond(
    test: Any,
    then: Callable[..., Sequence[Any]],
    orelse: Callable[..., Sequence[Any]],
    names: Sequence[str],
    values: Sequence[Any],
    line: int,
) -> Sequence[Any]:
    """``if test: then`` / ``else: orelse``; the values of ``names`` after it."""
    if not is_traced(test):
        return then(*values) if test else orelse(*values)
    return traced_cond(test, then, orelse, names, values, _where(line))


def choose(test: Any, then: Callable[[], Any], orelse: Callable[[], Any], line: int) -> Any:
    """``then if test else orelse``."""
    if not is_traced(test):
        return then() if test else orelse()
    where = _where(line)
    ways = (lambda _: [then()], lambda _: [orelse()])
    return traced_cond(test, *ways, ["the value"], [UNDEFINED], where)[0]


def both(first: Any, second: Callable[[], Any], line: int) -> Any:
    """The test ``first and second``."""
    if not is_traced(first):
        return first and second()
    return _combined(torch.logical_and, first, second(), _where(line))


def either(first: Any, second: Callable[[], Any], line: int) -> Any:
    """The test ``first or second``."""
    if not is_traced(first):
        return first or second()
    return _combined(torch.logical_or, first, second(), _where(line))


def _combined(operator: Callable[..., torch.Tensor], first: Any, second: Any, where: str) -> torch.Tensor:
    return operator(_truth(first, where), _truth(second, where))


def _truth(value: Any, where: str) -> torch.Tensor:
    """A bool tensor of shape ()."""
    if isinstance(value, torch.Tensor):
        return predicate(value, where)
    if isinstance(value, (torch.SymBool, torch.SymInt, torch.SymFloat)):
        return torch.full((), torch.sym_ite(value != 0 if not isinstance(value, torch.SymBool) else value, 1, 0)) != 0
    return torch.full((), bool(value))


def both_value(first: Any, second: Callable[[], Any], line: int) -> Any:
    """The value ``first and second``, which is one of the two."""
    if not is_traced(first):
        return first and second()
    ways = (lambda _: [second()], lambda _: [first])
    return traced_cond(first, *ways, ["the value of `and`"], [UNDEFINED], _where(line))[0]


def either_value(first: Any, second: Callable[[], Any], line: int) -> Any:
    """The value ``first or second``, which is one of the two."""
    if not is_traced(first):
        return first or second()
    ways = (lambda _: [first], lambda _: [second()])
    return traced_cond(first, *ways, ["the value of `or`"], [UNDEFINED], _where(line))[0]


def negated(value: Any, line: int) -> Any:
    """The test ``not value``."""
    if not is_traced(value):
        return not value
    return torch.logical_not(_truth(value, _where(line)))


def boolean(value: Any, line: int) -> Any:
    """``bool(value)``; of a traced tensor a bool tensor."""
    return _truth(value, _where(line)) if is_traced(value) else bool(value)


def integer(value: Any) -> Any:
    """``int(value)``; of a traced tensor a symbolic int."""
    return value.to(torch.int64).item() if isinstance(value, torch.Tensor) and is_traced(value) else int(value)


def floating(value: Any) -> Any:
    """``float(value)``; of a traced tensor a tensor of shape (), which computes as the number does."""
    if isinstance(value, torch.Tensor) and is_traced(value):
        return value.reshape(()) if value.is_floating_point() else value.reshape(()).to(torch.get_default_dtype())
    return float(value)


def number(value: Any) -> Any:
    """``value.item()``; of a traced tensor of floats or bools the tensor itself, of shape ()."""
    if isinstance(value, torch.Tensor) and is_traced(value):
        if value.is_floating_point() or value.dtype == torch.bool:
            return value.reshape(())
        return value.item()
    return value.item()


def refused(test: Any, line: int) -> bool:
    """The test of an ``if`` that raises. Traced, it becomes a check of the program, and the branch is not taken."""
    if not is_traced(test):
        return bool(test)
    where = _where(line)
    _checked(torch.logical_not(_truth(test, where)), where)
    return False


def holds(test: Any, line: int) -> bool:
    """The test of an ``assert``. Traced, it becomes a check of the program."""
    if not is_traced(test):
        return bool(test)
    where = _where(line)
    _checked(_truth(test, where), where)
    return True


def _checked(test: torch.Tensor, where: str) -> None:
    torch._check(test.to(torch.int64).item() == 1, lambda: f"The check at {where} failed")


def while_loop(
    test: Callable[..., Any], body: Callable[..., Sequence[Any]], names: Sequence[str], values: Sequence[Any], line: int
) -> Sequence[Any]:
    """``while test: body``; the values of ``names`` after it."""
    while True:
        # Asked outside the trace first: a test that is Python leaves nothing in the graph anyway.
        verdict = test(*values) if not _in_export() else probe(test, values).result
        if is_traced(verdict):
            return traced_while(test, body, names, values, _where(line))
        if not verdict:
            return values
        values = body(*values)


def _in_export() -> bool:
    from torch._guards import detect_fake_mode

    return detect_fake_mode() is not None


def every(
    source: Any, body: Callable[..., Sequence[Any]], names: Sequence[str], values: Sequence[Any], line: int
) -> Sequence[Any]:
    """``for item in source: body``; the values of ``names`` after it."""
    found = items(source)
    if not found.symbolic:
        for item in found.unrolled():
            values = body(item, *values)
        return values
    return traced_for(lambda row, *given: body(found.pack(row), *given), found, names, values, _where(line))


def listed(source: Any, function: Callable[[Any], Any], line: int) -> Any:
    """``[function(item) for item in source]``."""
    found = items(source)
    if not found.symbolic:
        return [function(item) for item in found.unrolled()]

    def body(row: Any, entries: list[Any]) -> list[Any]:
        entries.append(function(found.pack(row)))
        return [entries]

    return traced_for(body, found, ["the list"], [[]], _where(line))[0]


def ranged(*bounds: Any) -> Items:
    """``range(*bounds)``, whose bounds may be tensors."""
    return Items.range(*bounds)


def enumerated(source: Any, start: int = 0) -> Items:
    """``enumerate(source)``, of anything that ``every`` takes."""
    return Items.enumerate(items(source), start)


def zipped(*sources: Any, strict: bool = False) -> Items:
    """``zip(*sources)``, of anything that ``every`` takes; traced lengths are not compared."""
    return Items.zip([items(source) for source in sources], strict)
