"""Operators that look for places, or put something there, in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.experiment.known import Array, Operands, UnknownError, attribute, bounded


def _best(function: Callable[..., Any]) -> Callable[[ir.Node, Operands], Any]:
    def run(node: ir.Node, operands: Operands) -> Any:
        axis, keeps = int(attribute(node, "axis", 0)), bool(attribute(node, "keepdims", 1))
        given = np.asarray(operands[0])
        if not attribute(node, "select_last_index", 0):
            return function(given, axis=axis, keepdims=keeps)
        return given.shape[axis] - 1 - function(np.flip(given, axis), axis=axis, keepdims=keeps)

    return run


def _sorted(node: ir.Node, operands: Operands) -> tuple[Array, Array]:
    """The best ones and their places; of equal ones those that come first."""
    if not attribute(node, "sorted", 1):
        raise UnknownError
    given, axis = np.asarray(operands[0]), int(attribute(node, "axis", -1))
    count = int(np.asarray(operands[1]).item()) if len(operands) > 1 else int(attribute(node, "k"))
    order = -given.astype(np.float64) if attribute(node, "largest", 1) else given
    found = np.argsort(order, axis=axis, kind="stable").take(np.arange(count), axis=axis)
    return np.take_along_axis(given, found, axis=axis), found


def _one_hot(node: ir.Node, operands: Operands) -> Array:
    given, depth, pair = np.asarray(operands[0]), int(np.asarray(operands[1]).item()), np.asarray(operands[2])
    bounded(*given.shape, depth)
    axis = int(attribute(node, "axis", -1))
    hot = np.expand_dims(np.where(given < 0, given + depth, given), axis)
    rank = given.ndim + 1
    own = np.arange(depth).reshape([-1 if place == axis % rank else 1 for place in range(rank)])
    return np.where(hot == own, pair[1], pair[0])


def _put_along(node: ir.Node, operands: Operands) -> Array:
    if attribute(node, "reduction", "none") != "none":
        raise UnknownError
    whole = np.array(operands[0])
    np.put_along_axis(whole, np.asarray(operands[1]), np.asarray(operands[2]), axis=int(attribute(node, "axis", 0)))
    return whole


def _diagonal(node: ir.Node, operands: Operands) -> Array:
    dtype = attribute(node, "dtype")
    kind = np.asarray(operands[0]).dtype if dtype is None else ir.DataType(int(dtype)).numpy()
    rows, columns = np.shape(operands[0])
    bounded(rows, columns)
    return np.eye(rows, columns, k=int(attribute(node, "k", 0)), dtype=kind)


def _compressed(node: ir.Node, operands: Operands) -> Array:
    return np.compress(np.asarray(operands[1]), np.asarray(operands[0]), axis=attribute(node, "axis"))


OPERATORS: dict[str, Callable[[ir.Node, Operands], Any]] = {
    "ArgMax": _best(np.argmax), "ArgMin": _best(np.argmin), "TopK": _sorted, "OneHot": _one_hot,
    "NonZero": lambda node, operands: np.stack(np.nonzero(operands[0])).astype(np.int64),
    "ScatterElements": _put_along, "EyeLike": _diagonal, "Compress": _compressed,
}  # fmt: skip
