"""Numbers that came out of a tensor, watched on: what is computed from them, and the tests that ask them."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueport.rewrite.watch import Watch

ARITHMETIC = ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "neg", "abs")
COMPARISONS = ("lt", "le", "eq", "ne", "gt", "ge")


def watched(value: Any, watch: Watch) -> Any:
    """``value`` as a number of its own type that reports to ``watch``."""
    cls = WatchedFloat if isinstance(value, float) else WatchedInt
    number = cls(value)
    number.watch = watch
    return number


def _arithmetic(name: str, base: type, swapped: bool = False) -> Callable[..., Any]:
    plain = getattr(operator, name)

    def compute(self: Any, *other: Any) -> Any:
        own = base(self)
        if other and not isinstance(other[0], (int, float)):
            return NotImplemented
        rest = tuple(float(part) if isinstance(part, float) else int(part) for part in other)
        result = plain(*rest, own) if swapped else plain(own, *rest)
        return watched(result, self.watch) if isinstance(result, (int, float)) else result

    return compute


def _comparison(name: str, base: type) -> Callable[[Any, Any], Any]:
    plain = getattr(operator, name)

    def compare(self: Any, other: Any) -> Any:
        if not isinstance(other, (int, float)):
            return NotImplemented
        # A plain bool, since torch._check takes no other: the comparison itself counts as the test.
        result = bool(plain(base(self), other))
        read = self.watch.note("comparison")
        return result if read is None else self.watch.answer(read, result)

    return compare


def _truth(self: Any) -> bool:
    result = bool(type(self).__mro__[1](self))
    read = self.watch.note("bool")
    return result if read is None else self.watch.answer(read, result)


def _watching(base: type) -> dict[str, Any]:
    methods: dict[str, Any] = {f"__{name}__": _arithmetic(name, base) for name in ARITHMETIC}
    methods |= {f"__r{name}__": _arithmetic(name, base, swapped=True) for name in ARITHMETIC[:-2]}
    methods |= {f"__{name}__": _comparison(name, base) for name in COMPARISONS}
    return methods | {"__bool__": _truth, "__hash__": base.__hash__}


WatchedInt: Any = type("WatchedInt", (int,), _watching(int))
WatchedFloat: Any = type("WatchedFloat", (float,), _watching(float))
