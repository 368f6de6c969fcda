"""Operators that masks are made with, in NumPy, as the ONNX operators page defines them.

No result may be larger than ``LARGEST``: a stranger's graph decides what is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.experiment import places
from trueport.graphs.audit.experiment.known import (
    MISFITS,
    Array,
    Operands,
    UnknownError,
    attribute,
    bounded,
    numbers,
)  # fmt: skip


def compute(node: ir.Node, operands: Operands) -> list[Array]:
    """A node's outputs.

    Args:
        node: a node of the ONNX domain.
        operands: its inputs; None for those that are left out.

    Raises:
        UnknownError: it is no operator that masks are made with, or its inputs do not fit it.
    """
    if node.domain not in ("", "ai.onnx") or node.op_type not in OPERATORS:
        raise UnknownError
    try:
        with np.errstate(all="ignore"):
            found = OPERATORS[node.op_type](node, operands)
    except (*MISFITS, MemoryError) as error:
        raise UnknownError from error
    results = list(found) if isinstance(found, tuple) else [found]
    arrays = [np.asarray(result) for result in results]
    bounded(sum(array.size for array in arrays))
    return arrays


def _elementwise(function: Callable[..., Any]) -> Callable[[ir.Node, Operands], Any]:
    def run(node: ir.Node, operands: Operands) -> Any:
        bounded(*np.broadcast_shapes(*(np.shape(operand) for operand in operands)))
        found = function(*operands)
        # Two numbers of one dtype give that dtype, as in ONNX; NumPy would widen them.
        kept = np.result_type(*operands) if np.asarray(found).dtype.kind in "fiu" else None
        return found if kept is None else np.asarray(found).astype(kept)

    return run


def _quotient(first: Array, second: Array) -> Array:
    """Integers are divided towards zero."""
    if np.result_type(first, second).kind == "f":
        return np.divide(first, second)
    return np.trunc(np.divide(first, np.where(second == 0, 1, second)))


def _folded(function: Callable[..., Any]) -> Callable[[ir.Node, Operands], Any]:
    def run(node: ir.Node, operands: Operands) -> Any:
        whole = operands[0]
        for operand in operands[1:]:
            bounded(*np.broadcast_shapes(np.shape(whole), np.shape(operand)))
            whole = function(whole, operand)
        return whole

    return run


def _cast(node: ir.Node, operands: Operands) -> Array:
    target = ir.DataType(int(attribute(node, "to"))) if node.op_type == "Cast" else None
    dtype = np.asarray(operands[1]).dtype if target is None else target.numpy()
    given = np.asarray(operands[0])
    if dtype.kind not in "fiub":  # bfloat16 and its like reach as far as float32
        dtype = np.dtype(np.float32)
    if given.dtype.kind == "f" and dtype.kind in "iu":
        limits = np.iinfo(dtype)
        given = np.nan_to_num(np.trunc(given)).clip(float(limits.min), float(limits.max))
    return given.astype(dtype)


def _clip(node: ir.Node, operands: Operands) -> Array:
    low, high = (
        operands[place] if place < len(operands) else attribute(node, name) for place, name in ((1, "min"), (2, "max"))
    )
    found = np.asarray(operands[0])
    found = found if low is None else np.maximum(found, low)
    return (found if high is None else np.minimum(found, high)).astype(np.asarray(operands[0]).dtype)


def _reshape(node: ir.Node, operands: Operands) -> Array:
    given, target = np.asarray(operands[0]), numbers(node, operands, 1, "shape") or []
    keeps = not attribute(node, "allowzero", 0)
    return given.reshape([given.shape[i] if size == 0 and keeps else size for i, size in enumerate(target)])


def _expand(node: ir.Node, operands: Operands) -> Array:
    target = [int(size) for size in operands[1]]
    shape = np.broadcast_shapes(np.shape(operands[0]), tuple(target))
    bounded(*shape)
    return np.broadcast_to(operands[0], shape)


def _unsqueeze(node: ir.Node, operands: Operands) -> Array:
    return np.expand_dims(operands[0], tuple(numbers(node, operands, 1, "axes") or []))


def _squeeze(node: ir.Node, operands: Operands) -> Array:
    axes = numbers(node, operands, 1, "axes")
    return np.squeeze(operands[0], None if axes is None else tuple(axes))


def _transpose(node: ir.Node, operands: Operands) -> Array:
    return np.transpose(operands[0], attribute(node, "perm"))


def _flatten(node: ir.Node, operands: Operands) -> Array:
    axis = int(attribute(node, "axis", 1))
    axis += np.ndim(operands[0]) if axis < 0 else 0
    return np.reshape(operands[0], (math.prod(np.shape(operands[0])[:axis]), -1))


def _tile(node: ir.Node, operands: Operands) -> Array:
    bounded(np.size(operands[0]), *(max(int(count), 1) for count in operands[1]))
    return np.tile(operands[0], [int(count) for count in operands[1]])


def _concat(node: ir.Node, operands: Operands) -> Array:
    bounded(sum(np.size(operand) for operand in operands))
    return np.concatenate([np.asarray(operand) for operand in operands], axis=int(attribute(node, "axis", 0)))


def _slice(node: ir.Node, operands: Operands) -> Array:
    starts, ends, axes, steps = (
        numbers(node, operands, place, name) for place, name in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps"))
    )
    given = np.asarray(operands[0])
    cuts = [slice(None)] * given.ndim
    for index, start in enumerate(starts or []):
        axis, step = index if axes is None else axes[index], 1 if steps is None else steps[index]
        end = (ends or [])[index]
        size = given.shape[axis]
        if step < 0:
            start, end = min(start, size - 1), (None if end < -size else end)  # type: ignore[assignment]
        cuts[axis] = slice(start, end, step)
    return given[tuple(cuts)]


def _gather(node: ir.Node, operands: Operands) -> Array:
    axis = int(attribute(node, "axis", 0))
    given = np.asarray(operands[0])
    bounded(np.size(operands[1]), given.size // max(given.shape[axis], 1))
    return np.take(given, np.asarray(operands[1]), axis=axis)


def _gather_nd(node: ir.Node, operands: Operands) -> Array:
    given, places, batch = np.asarray(operands[0]), np.asarray(operands[1]), int(attribute(node, "batch_dims", 0))
    depth = places.shape[-1]
    bounded(places.size // max(depth, 1), *given.shape[batch + depth :])
    grid = [
        np.arange(size).reshape([-1 if axis == i else 1 for axis in range(places.ndim - 1)])
        for i, size in enumerate(given.shape[:batch])
    ]
    return given[(*grid, *np.moveaxis(places, -1, 0))]


def _scatter_nd(node: ir.Node, operands: Operands) -> Array:
    if attribute(node, "reduction", "none") != "none":
        raise UnknownError
    whole = np.array(operands[0])
    whole[tuple(np.moveaxis(np.asarray(operands[1]), -1, 0))] = operands[2]
    return whole


def _range(node: ir.Node, operands: Operands) -> Array:
    start, limit, step = (np.asarray(operand).item() for operand in operands)
    bounded(max(math.ceil((limit - start) / step), 0))
    return np.arange(start, limit, step, dtype=np.asarray(operands[0]).dtype)


def _filled(node: ir.Node, operands: Operands) -> Array:
    shape = [int(size) for size in operands[0]]
    bounded(*shape)
    value = attribute(node, "value")
    return np.full(shape, 0.0 if value is None else value.numpy().flat[0], np.float32 if value is None else None)


def _triangle(node: ir.Node, operands: Operands) -> Array:
    diagonal = int(np.asarray(operands[1]).item()) if len(operands) > 1 and operands[1] is not None else 0
    return (np.triu if attribute(node, "upper", 1) else np.tril)(operands[0], diagonal)


def _running(node: ir.Node, operands: Operands) -> Array:
    given, axis = np.asarray(operands[0]), int(np.asarray(operands[1]).item())
    backwards = attribute(node, "reverse", 0)
    given = np.flip(given, axis) if backwards else given
    found = np.cumsum(given, axis=axis, dtype=given.dtype)
    if attribute(node, "exclusive", 0):
        before = np.take(found, np.arange(found.shape[axis] - 1), axis=axis)
        found = np.concatenate([np.zeros_like(np.take(found, [0], axis=axis)), before], axis=axis)
    return np.flip(found, axis) if backwards else found


def _reduced(function: Callable[..., Any]) -> Callable[[ir.Node, Operands], Any]:
    def run(node: ir.Node, operands: Operands) -> Any:
        axes = numbers(node, operands, 1, "axes")
        if not axes and attribute(node, "noop_with_empty_axes", 0):
            return operands[0]
        given = np.asarray(operands[0])
        found = function(given, axis=tuple(axes) if axes else None, keepdims=bool(attribute(node, "keepdims", 1)))
        return np.asarray(found).astype(given.dtype)

    return run


def _absolute_sum(given: Array, **how: Any) -> Array:
    return np.sum(np.abs(given), **how)


def _pad(node: ir.Node, operands: Operands) -> Array:
    if attribute(node, "mode", "constant") not in ("constant", b"constant"):
        raise UnknownError
    given = np.asarray(operands[0])
    pads = numbers(node, operands, 1, "pads") or []
    axes = [int(axis) for axis in operands[3]] if len(operands) > 3 and operands[3] is not None else range(given.ndim)
    fill = operands[2] if len(operands) > 2 and operands[2] is not None else attribute(node, "value", 0)
    if any(pad < 0 for pad in pads):
        raise UnknownError
    sides = [(0, 0)] * given.ndim
    for index, axis in enumerate(axes):
        sides[axis] = (pads[index], pads[index + len(pads) // 2])
    bounded(*(size + sum(side) for size, side in zip(given.shape, sides, strict=True)))
    return np.pad(given, sides, constant_values=np.asarray(fill).item())


def _split(node: ir.Node, operands: Operands) -> tuple[Array, ...]:
    axis = int(attribute(node, "axis", 0))
    sizes = numbers(node, operands, 1, "split")
    if sizes is None:  # alike, the last one perhaps shorter
        size = -(-np.shape(operands[0])[axis] // len(node.outputs))
        sizes = [size] * len(node.outputs)
    return tuple(np.split(operands[0], np.cumsum(sizes)[:-1], axis=axis))


def _product(node: ir.Node, operands: Operands) -> Array:
    first, second = np.asarray(operands[0]), np.asarray(operands[1])
    bounded(first.size, second.size)
    return np.matmul(first, second)


def _einsum(node: ir.Node, operands: Operands) -> Array:
    if sum(np.ndim(operand) for operand in operands) > 12:
        raise UnknownError
    bounded(*(np.size(operand) for operand in operands))
    return np.einsum(str(attribute(node, "equation")), *operands)


def _remainder(node: ir.Node, operands: Operands) -> Array:
    return _elementwise(np.fmod if attribute(node, "fmod", 0) else np.mod)(node, operands)


def _is_infinite(node: ir.Node, operands: Operands) -> Array:
    above, below = (attribute(node, f"detect_{side}", 1) for side in ("positive", "negative"))
    given = np.asarray(operands[0])
    return (np.isposinf(given) & bool(above)) | (np.isneginf(given) & bool(below))


def _where(node: ir.Node, operands: Operands) -> Array:
    bounded(*np.broadcast_shapes(*(np.shape(operand) for operand in operands)))
    return np.where(np.asarray(operands[0]).astype(bool), operands[1], operands[2])


ELEMENTWISE: dict[str, Callable[..., Any]] = {
    "Neg": np.negative, "Abs": np.abs, "Not": np.logical_not, "Log": np.log, "Exp": np.exp, "Sqrt": np.sqrt,
    "Reciprocal": np.reciprocal, "Floor": np.floor, "Ceil": np.ceil, "Round": np.round, "Sign": np.sign,
    "Tanh": np.tanh, "Cos": np.cos, "Sin": np.sin, "IsNaN": np.isnan,
    "Relu": lambda x: np.maximum(x, 0), "Sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": _quotient, "Pow": np.power,
    "Equal": np.equal, "Less": np.less, "Greater": np.greater, "LessOrEqual": np.less_equal,
    "GreaterOrEqual": np.greater_equal, "And": np.logical_and, "Or": np.logical_or, "Xor": np.logical_xor,
    "BitwiseAnd": np.bitwise_and, "BitwiseOr": np.bitwise_or, "BitwiseNot": np.bitwise_not,
    "BitwiseXor": np.bitwise_xor,
}  # fmt: skip
FOLDED: dict[str, Callable[..., Any]] = {"Min": np.minimum, "Max": np.maximum, "Sum": np.add}
REDUCED: dict[str, Callable[..., Any]] = {
    "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min, "ReduceMean": np.mean, "ReduceProd": np.prod,
    "ReduceL1": _absolute_sum,
}  # fmt: skip
OPERATORS: dict[str, Callable[[ir.Node, Operands], Any]] = {
    **{name: _elementwise(function) for name, function in ELEMENTWISE.items()},
    **{name: _folded(function) for name, function in FOLDED.items()},
    **{name: _reduced(function) for name, function in REDUCED.items()},
    **places.OPERATORS,
    "Where": _where, "Mod": _remainder, "IsInf": _is_infinite,
    "Identity": lambda node, operands: operands[0], "Dropout": lambda node, operands: operands[0],
    "Cast": _cast, "CastLike": _cast, "Clip": _clip, "Reshape": _reshape, "Expand": _expand, "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze, "Transpose": _transpose, "Flatten": _flatten, "Tile": _tile, "Concat": _concat,
    "Slice": _slice, "Gather": _gather, "GatherND": _gather_nd, "ScatterND": _scatter_nd, "Range": _range,
    "ConstantOfShape": _filled, "Trilu": _triangle, "CumSum": _running, "Pad": _pad, "Split": _split,
    "MatMul": _product, "Einsum": _einsum,
    "GatherElements": lambda node, operands: np.take_along_axis(
        np.asarray(operands[0]), np.asarray(operands[1]), axis=int(attribute(node, "axis", 0))),
    "Size": lambda node, operands: np.int64(np.size(operands[0])),
    "Shape": lambda node, operands: np.array(np.shape(operands[0])[
        slice(attribute(node, "start", 0), attribute(node, "end"))], dtype=np.int64),
}  # fmt: skip
