"""ONNX forms of operators that read, write or order by places, where torchlib's are wrong or none."""

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from onnxscript import opset18 as op


def scattered(written: Any, dim: int, index: Any, source: Any) -> Any:
    """``scatter`` of a tensor, of which torch reads as much as there are indices."""
    return _scattered(written, dim, index, source, "none")


def scatter_added(written: Any, dim: int, index: Any, source: Any) -> Any:
    """``scatter_add``."""
    return _scattered(written, dim, index, source, "add")


def scatter_reduced(written: Any, dim: int, index: Any, source: Any, reduce: str, include_self: bool = True) -> Any:
    """``scatter_reduce``; a mean is a sum over a count, where torchlib writes the last."""
    from onnxscript.function_libs.torch_lib.ops import core

    if not len(written.shape):
        return core.aten_scatter_reduce(written, dim, index, source, reduce, include_self)
    if reduce != "mean":
        return core.aten_scatter_reduce(written, dim, index, _read(source, index), reduce, include_self)
    one = ir.tensor([1], dtype=written.dtype)
    ones = op.ConstantOfShape(op.Shape(index), value=one)
    total, counted = written, op.ConstantOfShape(op.Shape(written), value=one)
    if not include_self:
        nothing = op.ConstantOfShape(op.Shape(index), value=ir.tensor([0], dtype=written.dtype))
        total, counted = (op.ScatterElements(each, index, nothing, axis=dim) for each in (total, counted))
        # Where nothing is written, what was there stays, once.
    total = op.ScatterElements(total, index, _read(source, index), axis=dim, reduction="add")
    counted = op.ScatterElements(counted, index, ones, axis=dim, reduction="add")
    if written.dtype.is_floating_point():
        return op.Div(total, counted)
    left = op.Mod(total, counted)  # of the divisor's sign, so that the quotient is rounded down
    return op.Div(op.Sub(total, left), counted)


def _scattered(written: Any, dim: int, index: Any, source: Any, reduction: str) -> Any:
    if len(written.shape):
        return op.ScatterElements(written, index, _read(source, index), axis=dim, reduction=reduction)
    first = op.Constant(value_ints=[-1])
    found = (op.Reshape(value, first) for value in (written, index, source))
    return op.Squeeze(op.ScatterElements(*found, axis=0, reduction=reduction), op.Constant(value_ints=[0]))


def _read(source: Any, index: Any) -> Any:
    """The part of the source that the indices speak of."""
    if not len(source.shape) or list(source.shape) == list(index.shape):
        return source
    axes = list(range(len(source.shape)))
    part = op.Slice(source, op.Constant(value_ints=[0] * len(axes)), op.Shape(index), op.Constant(value_ints=axes))
    part.dtype, part.shape = source.dtype, index.shape
    return part


def diagonal(x: Any, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """``diagonal``, looked up: torchlib's is a sum of products with a mask, NaN where the tensor holds an infinity."""
    rank = len(x.shape)
    rows, columns = dim1 % rank, dim2 % rank
    others = [axis for axis in range(rank) if axis not in (rows, columns)]
    x = op.Transpose(x, perm=[*others, rows, columns])
    zero, one, last = (op.Constant(value_ints=[number]) for number in (0, 1, -1))
    high, wide = op.Shape(x, start=rank - 2, end=rank - 1), op.Shape(x, start=rank - 1, end=rank)
    down, right = op.Constant(value_ints=[max(-offset, 0)]), op.Constant(value_ints=[max(offset, 0)])
    length = op.Max(op.Min(op.Sub(high, down), op.Sub(wide, right)), zero)
    steps = op.Range(*(op.Squeeze(each, zero) for each in (zero, length, one)))
    places = op.Add(op.Add(op.Mul(down, wide), right), op.Mul(steps, op.Add(wide, one)))
    flat = op.Reshape(x, op.Concat(op.Shape(x, start=0, end=rank - 2), last, axis=0) if others else last)
    return op.Gather(flat, places, axis=rank - 2)


def looked_up(x: Any, indices: Any) -> Any:
    """``index``; ONNX takes no int32."""
    from onnxscript.function_libs.torch_lib.ops import core

    return core.aten_index(x, [_long(index) for index in indices])


def put(x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """``index_put``."""
    from onnxscript.function_libs.torch_lib.ops import core

    return core.aten_index_put(x, [_long(index) for index in indices], values, accumulate)


def _long(index: Any) -> Any:
    if index is None or index.dtype != ir.DataType.INT32:
        return index
    wide = op.Cast(index, to=ir.DataType.INT64)
    wide.dtype, wide.shape = ir.DataType.INT64, index.shape
    return wide


def repeated(repeats: Any, output_size: int | None = None) -> Any:
    """``repeat_interleave`` of counts; the size that torch is told is not asked for."""
    from onnxscript.function_libs.torch_lib.ops import core

    return core.aten_repeat_interleave_Tensor(_long(repeats))


def ordered(x: Any, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:
    """``sort``, stable: of equals ONNX gives the first first."""
    from onnxscript.function_libs.torch_lib.ops import core

    return core.aten_sort(x, dim, descending)


def searched(
    edges: Any, x: Any, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    """``searchsorted`` of (..., edges) for (..., numbers): how many edges lie below each number."""
    rank = len(edges.shape)
    if sorter is not None:
        edges = op.GatherElements(edges, sorter, axis=-1)
    if rank > 1:
        edges = op.Unsqueeze(edges, op.Constant(value_ints=[-2]))
    x = op.Unsqueeze(x, op.Constant(value_ints=[-1]))
    beyond = op.LessOrEqual(edges, x) if right or side == "right" else op.Less(edges, x)
    last = op.Constant(value_ints=[-1])
    found = op.ReduceSum(op.Cast(beyond, to=ir.DataType.INT64), last, keepdims=0)
    return op.Cast(found, to=ir.DataType.INT32) if out_int32 else found


def shifted_left(x: Any, by: Any) -> Any:
    """``<<``."""
    from onnxscript.function_libs.torch_lib.ops import core

    return core.aten_bitwise_left_shift(x, op.CastLike(by, x))


def shifted_right(x: Any, by: Any) -> Any:
    """``>>``."""
    from onnxscript.function_libs.torch_lib.ops import core

    return core.aten_bitwise_right_shift(x, op.CastLike(by, x))


def added(x: Any, y: Any, alpha: float = 1.0) -> Any:
    """``add``; of truth values it is *or*, as ONNX adds numbers alone."""
    if all(getattr(value, "dtype", None) == ir.DataType.BOOL for value in (x, y)):
        return op.Or(x, y)
    from torch.onnx._internal.exporter._torchlib.ops import core

    return core.aten_add(x, y, alpha=alpha)


def forms() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By torch operator."""
    import torch

    aten = torch.ops.aten
    return {
        aten.scatter.src: scattered,
        aten.scatter_add.default: scatter_added,
        aten.scatter_reduce.two: scatter_reduced,
        aten.diagonal.default: diagonal,
        aten.diagonal_copy.default: diagonal,
        aten.index.Tensor: looked_up,
        aten.index_put.default: put,
        aten.repeat_interleave.Tensor: repeated,
        aten.sort.stable: ordered,
        aten.searchsorted.Tensor: searched,
        aten.__lshift__.Tensor: shifted_left,
        aten.__rshift__.Tensor: shifted_right,
        aten.add.Tensor: added,
    }
