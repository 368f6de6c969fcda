"""ONNX forms of logarithms of sums of exponentials where torchlib's overflow, or end at -inf, far from zero.

``log(sigmoid(-90))`` is -inf and ``log(exp(90) + exp(0))`` is inf in float32, where torch gives -90 and 90.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from onnxscript import opset18 as op


def log_sigmoid(x: Any) -> Any:
    """``logsigmoid``, of any shape."""
    return op.Neg(op.Softplus(op.Neg(x)))


def added(x: Any, y: Any) -> Any:
    """``logaddexp``; two equal infinities have no difference."""
    return _added(x, y, 1.0)


def added_in_twos(x: Any, y: Any) -> Any:
    """``logaddexp2``."""
    return _added(x, y, math.log(2))


def _added(x: Any, y: Any, unit: float) -> Any:
    """log(exp(x unit) + exp(y unit)) / unit."""
    scale = op.CastLike(unit, x)
    apart = op.Mul(op.Neg(op.Abs(op.Sub(x, y))), scale)
    larger = op.Add(op.Max(x, y), op.Div(op.Softplus(apart), scale))
    return op.Where(op.Equal(x, y), op.Add(x, op.CastLike(math.log(2) / unit, x)), larger)


def summed(x: Any, dim: Any, keepdim: bool = False) -> Any:
    """``logsumexp``: ONNX Runtime's takes 0 for the largest where the first is infinite, and loses what is below -103."""
    if len(x.shape) == 0:
        return x
    axes = op.Constant(value_ints=[dim] if isinstance(dim, int) else list(dim)) if _is_plain(dim) else dim
    return _summed(x, axes, keepdim)


def _summed(x: Any, axes: Any, keepdim: bool) -> Any:
    largest = op.ReduceMax(x, axes, keepdims=1)
    finite = op.Where(op.Equal(op.Abs(largest), op.CastLike(math.inf, x)), op.CastLike(0.0, x), largest)
    total = op.Add(op.Log(op.ReduceSum(op.Exp(op.Sub(x, finite)), axes, keepdims=1)), finite)
    return total if keepdim else op.Squeeze(total, axes)


def _is_plain(dim: Any) -> bool:
    return isinstance(dim, (int, Sequence))


def cumulated(x: Any, dim: int) -> Any:
    """``logcumsumexp``: every row has a maximum of its own, so all are looked at for each, n^2 numbers of n."""
    rank = len(x.shape)
    if rank == 0:
        return x
    dim %= rank
    length = op.Squeeze(op.Shape(x, start=dim, end=dim + 1))
    places = op.Range(op.Constant(value_int=0), length, op.Constant(value_int=1))
    # (..., here, before, ...): what lies behind is left out.
    before = op.LessOrEqual(
        op.Unsqueeze(places, op.Constant(value_ints=[0])), op.Unsqueeze(places, op.Constant(value_ints=[1]))
    )
    if dim < rank - 1:
        before = op.Unsqueeze(before, op.Constant(value_ints=list(range(2, rank - dim + 1))))
    seen = op.Where(before, op.Unsqueeze(x, op.Constant(value_ints=[dim])), op.CastLike(-math.inf, x))
    return _summed(seen, op.Constant(value_ints=[dim + 1]), False)


def forms() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By torch operator."""
    import torch

    aten = torch.ops.aten
    return {
        aten.log_sigmoid.default: log_sigmoid,
        aten.logaddexp.default: added,
        aten.logaddexp2.default: added_in_twos,
        aten.logsumexp.default: summed,
        aten.logcumsumexp.default: cumulated,
    }
