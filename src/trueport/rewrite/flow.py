"""What rewritten functions call. Outside of an export each of these is the Python that it replaced.

Every decision is made when the call runs: a test that turns out to be a plain bool takes one branch, a loop over a plain
number of items is unrolled. So a rewritten function computes what the original computes, whoever calls it.
"""

from __future__ import annotations

import operator
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
from trueport.rewrite.values import UNDEFINED, is_python_bool, python_bool

COMPARISONS: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge, "==": operator.eq, "!=": operator.ne,
    "is": operator.is_, "is not": operator.is_not,
}  # fmt: skip
REWRITTEN = r" \([^()]*, rewritten\)$"
"""What the file name of a rewritten function ends with, in tracebacks."""

__all__ = [
    "added",
    "added_to",
    "all_of",
    "any_of",
    "boolean",
    "both",
    "both_value",
    "chained",
    "choose",
    "cond",
    "contained",
    "either",
    "either_value",
    "enumerated",
    "every",
    "floating",
    "holds",
    "identical",
    "integer",
    "joined",
    "listed",
    "local",
    "multiplied",
    "multiplied_by",
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
    return _joined_tests(first, second, False, torch.logical_and, _where(line))


def either(first: Any, second: Callable[[], Any], line: int) -> Any:
    """The test ``first or second``."""
    if not is_traced(first):
        return first or second()
    return _joined_tests(first, second, True, torch.logical_or, _where(line))


def _joined_tests(
    first: Any, second: Callable[[], Any], decided: bool, join: Callable[..., torch.Tensor], where: str
) -> torch.Tensor:
    """Two tests in one: both computed, or the second only where the first lets it, if it may end the run."""
    if not probe(second).partial:
        return _combined(join, first, second(), where)

    def asked(_: Any) -> list[torch.Tensor]:
        return [_truth(second(), where)]

    def known(_: Any) -> list[torch.Tensor]:
        return [torch.full((), decided)]

    ways = (known, asked) if decided else (asked, known)
    joined_test: torch.Tensor = traced_cond(first, *ways, ["the test"], [UNDEFINED], where)[0]
    return joined_test


def _combined(join: Callable[..., torch.Tensor], first: Any, second: Any, where: str) -> torch.Tensor:
    return join(_truth(first, where), _truth(second, where))


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
    return python_bool(torch.logical_not(_truth(value, _where(line))))


def chained(operators: Sequence[str], values: Sequence[Callable[[], Any]], line: int) -> Any:
    """The test ``a < b < c``: each value read once, and none behind a comparison that is plainly false."""
    where, result, left = _where(line), None, values[0]()
    for name, value in zip(operators, values[1:], strict=True):
        right = value()
        test = COMPARISONS[name](left, right)
        if result is None:
            result = test
        else:
            result = _combined(torch.logical_and, result, test, where) if is_traced(result) else test
        if not is_traced(result) and not result:
            return result
        left = right
    return result


def any_of(source: Any, line: int) -> Any:
    """``any(source)``."""
    return _quantified(source, False, torch.logical_or, _where(line))


def all_of(source: Any, line: int) -> Any:
    """``all(source)``."""
    return _quantified(source, True, torch.logical_and, _where(line))


def _quantified(source: Any, empty: bool, join: Callable[..., torch.Tensor], where: str) -> Any:
    """Items until one decides; those that are known only when the graph runs are joined."""
    result = None
    for item in source:
        if is_traced(item):
            truth = _truth(item, where)
            result = truth if result is None else join(result, truth)
        elif bool(item) != empty:
            return not empty
    return empty if result is None else python_bool(result)


def contained(item: Any, source: Any, line: int) -> Any:
    """``item in source``."""
    if isinstance(source, torch.Tensor) and (is_traced(source) or is_traced(item)):
        return python_bool((source == item).any())
    if not is_traced(item) and not (isinstance(source, (list, tuple)) and any(map(is_traced, source))):
        return item in source
    return _quantified((item is entry or item == entry for entry in source), False, torch.logical_or, _where(line))


def identical(value: Any, other: bool) -> Any:
    """``value is other``, where a bool that was read from a tensor may stand."""
    if isinstance(value, torch.Tensor) and is_python_bool(value):
        return value if other else python_bool(torch.logical_not(value))
    return value is other


def added(one: Any, other: Any) -> Any:
    """``one + other``, of Python's bools a number."""
    return _number_of(one, other) + other


def multiplied(one: Any, other: Any) -> Any:
    """``one * other``, of Python's bools a number."""
    return _number_of(one, other) * other


def added_to(one: Any, other: Any) -> Any:
    """``one += other``."""
    return operator.iadd(_number_of(one, other), other)


def multiplied_by(one: Any, other: Any) -> Any:
    """``one *= other``."""
    return operator.imul(_number_of(one, other), other)


def _number_of(one: Any, other: Any) -> Any:
    """The first operand; as an integer where both are bools to Python, of which at least one is traced."""
    if not isinstance(one, torch.Tensor) or not is_python_bool(one):
        return one
    return one.to(torch.int64) if isinstance(other, bool) or is_python_bool(other) else one


def boolean(value: Any, line: int) -> Any:
    """``bool(value)``; of a traced tensor a bool tensor that stands for one of Python's bools."""
    return python_bool(_truth(value, _where(line))) if is_traced(value) else bool(value)


def integer(value: Any) -> Any:
    """``int(value)``; of a traced tensor a symbolic int."""
    return value.to(torch.int64).item() if isinstance(value, torch.Tensor) and is_traced(value) else int(value)


def floating(value: Any) -> Any:
    """``float(value)``; of a traced tensor a tensor of shape (), which computes as the number does."""
    return _wide(value) if isinstance(value, torch.Tensor) and is_traced(value) else float(value)


def _wide(value: torch.Tensor) -> torch.Tensor:
    """A number read from a tensor, which Python computes with in 64 bits: in the default dtype at least."""
    return value.reshape(()).to(torch.promote_types(value.dtype, torch.get_default_dtype()))


def number(value: Any) -> Any:
    """``value.item()``; of a traced tensor of floats or bools the tensor itself, of shape ()."""
    if isinstance(value, torch.Tensor) and is_traced(value):
        if value.dtype == torch.bool:
            return python_bool(value.reshape(()).clone())
        if value.is_floating_point():
            return _wide(value)
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
