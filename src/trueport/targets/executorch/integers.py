"""Integers' powers, remainders and sums, which ExecuTorch 1.4.1 computes in floats, or on the other side of zero."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trueport.targets.executorch.formulas import Call

aten = torch.ops.aten


def _power(call: Call, *, self: Any, exponent: Any = 2) -> Any:
    """By squares, wrapping as torch's do: the kernel's doubles lose what is past 2**53.

    Below an exponent of zero only 1 and -1 leave something.
    """
    dtype = _whole(self, exponent)
    if dtype is None:
        return None
    base, exponent = (_as(call, each, dtype) for each in (self, exponent))
    if isinstance(exponent, int):
        result, square = call(aten.full_like.default, base, 1), base
        while exponent:
            result = call(aten.mul.Tensor, result, square) if exponent & 1 else result
            exponent >>= 1
            square = call(aten.mul.Tensor, square, square) if exponent else square
        return result
    first = _filled(call, base, exponent)
    left, square, result = exponent, first, call(aten.full_like.default, exponent, 1)
    for _ in range(torch.iinfo(dtype).bits - 1):
        odd = call(aten.eq.Scalar, call(aten.bitwise_and.Scalar, left, 1), 1)
        result = call(aten.where.self, odd, call(aten.mul.Tensor, result, square), result)
        square = call(aten.mul.Tensor, square, square)
        left = call(aten.bitwise_right_shift.Tensor_Scalar, left, 1)
    large = call(aten.ne.Scalar, call(aten.abs.default, first), 1)
    lost = call(aten.logical_and.default, call(aten.lt.Scalar, exponent, 0), large)
    return call(aten.where.self, lost, call(aten.full_like.default, result, 0), result)


def _remainder(call: Call, *, self: Any, other: Any) -> Any:
    """What the quotient, rounded down, leaves: the kernel computes in doubles, and on the dividend's side."""
    dtype = _whole(self, other)
    if dtype is None:
        return None
    number, divisor = (_as(call, each, dtype) for each in (self, other))
    number, divisor = _filled(call, number, divisor), _filled(call, divisor, number)
    whole = call(aten.floor_divide.default, number, divisor)
    return call(aten.sub.Tensor, number, call(aten.mul.Tensor, whole, divisor))


def _sum(call: Call, *, self: Any, dim: Any, keepdim: bool, dtype: Any) -> Any:
    """Of integers the last of the running sums: the sum's own kernel adds in float32, exact up to 2**24."""
    number = self.meta["val"].dtype
    into = dtype or torch.int64
    if number.is_floating_point or number == torch.bool or into.is_floating_point or not dim:
        return None
    axes = sorted((axis % self.meta["val"].dim() for axis in dim), reverse=True)
    for axis in axes:
        running = call(aten.cumsum.default, self, axis, dtype=into)
        self = call(aten.select.int, running, axis, -1)
        self = call(aten.unsqueeze.default, self, axis) if keepdim else self
    return self


def _whole(*given: Any) -> torch.dtype | None:
    """The dtype of a result of tensors and numbers; None where it is no integer's."""
    dtype = torch.result_type(*(each.meta["val"] if isinstance(each, torch.fx.Node) else each for each in given))
    return None if dtype.is_floating_point or dtype.is_complex or dtype == torch.bool else dtype


def _as(call: Call, value: Any, dtype: torch.dtype) -> Any:
    return call(aten._to_copy.default, value, dtype=dtype) if isinstance(value, torch.fx.Node) else value


def _filled(call: Call, value: Any, like: Any) -> Any:
    """A number as a tensor like another."""
    return value if isinstance(value, torch.fx.Node) else call(aten.full_like.default, like, value)


FORMS: dict[Any, Callable[..., Any]] = {
    **{getattr(aten.pow, name): _power for name in ("Tensor_Scalar", "Tensor_Tensor", "Scalar")},
    aten.square.default: _power,
    **{getattr(aten.remainder, name): _remainder for name in ("Scalar", "Tensor", "Scalar_Tensor")},
    aten.sum.dim_IntList: _sum,
}
"""By operator, as those of spelled.py; None of floats, whose kernels are right."""
