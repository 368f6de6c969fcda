"""bfloat16 arithmetic on a runtime without it: compute in float32, round after every operator."""

from __future__ import annotations

import onnx_ir as ir

MOVES_ONLY = {
    "Cast", "CastLike", "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Shape", "Size", "Flatten",
    "Gather", "Slice", "Concat", "Constant", "If", "Loop", "Scan",
}  # fmt: skip
"""Operators that ONNX Runtime's CPU provider runs on any element type, as they only move elements."""


def widen_bfloat16(model: ir.Model) -> int:
    """Wrap every bfloat16 operator that computes in casts; returns how many.

    A float32 product, sum or quotient of bfloat16 numbers, rounded once, is the correctly rounded bfloat16 result;
    a reduction is more exact than PyTorch's own.
    """
    count = 0
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.domain in ("", "ai.onnx") and node.op_type in MOVES_ONLY:
            continue
        narrow_in = [index for index, value in enumerate(node.inputs) if _is_bfloat16(value)]
        narrow_out = [value for value in node.outputs if _is_bfloat16(value)]
        if not narrow_in and not narrow_out:
            continue
        count += 1
        for index in narrow_in:
            user, place = _reader(node, index)
            cast = _cast(user.inputs[place], ir.DataType.FLOAT)
            user.graph.insert_before(user, cast)  # type: ignore[union-attr]
            user.replace_input_with(place, cast.outputs[0])
        for value in narrow_out:
            _round_output(node, value)
    return count


def _reader(node: ir.Node, index: int) -> tuple[ir.Node, int]:
    """Where to cast an operand: in front of the transposition of a weight that no other node reads, else at the node.

    ONNX Runtime reads a weight transposed where the transposition is the last that happens to it.
    """
    value = node.inputs[index]
    assert value is not None
    moved = value.producer()
    weight = moved.inputs[0] if moved is not None and moved.op_type == "Transpose" else None
    if moved is None or weight is None or not weight.is_initializer():
        return node, index
    if len(value.uses()) > 1 or value.is_graph_output():
        return node, index
    value.type = ir.TensorType(ir.DataType.FLOAT)
    return moved, 0


def _is_bfloat16(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.BFLOAT16


def _cast(value: ir.Value | None, dtype: ir.DataType) -> ir.Node:
    node = ir.node("Cast", [value], {"to": ir.AttrInt64("to", dtype.value)})
    node.outputs[0].type = ir.TensorType(dtype)
    return node


def _round_output(node: ir.Node, value: ir.Value) -> None:
    """Let ``node`` give float32 and a Cast after it give the bfloat16 that others read."""
    graph = node.graph
    assert graph is not None
    users = list(value.uses())
    cast = _cast(value, ir.DataType.BFLOAT16)
    rounded = cast.outputs[0]
    graph.insert_after(node, cast)
    for user, index in users:
        user.replace_input_with(index, rounded)
    for index, output in enumerate(graph.outputs):
        if output is value:
            name = value.name
            rounded.name, value.name = name, f"{name}_wide"
            rounded.shape = value.shape
            graph.outputs[index] = rounded
    value.type = ir.TensorType(ir.DataType.FLOAT)


def double_transforms(model: ir.Model) -> None:
    """Take Fourier transforms in float64: ONNX Runtime's float32 kernel loses twenty times what PyTorch's does."""
    for node in list(ir.traversal.RecursiveGraphIterator(model.graph)):
        if node.op_type != "DFT" or node.inputs[0] is None or node.inputs[0].dtype != ir.DataType.FLOAT:
            continue
        graph, value = node.graph, node.outputs[0]
        assert graph is not None
        wide = _cast(node.inputs[0], ir.DataType.DOUBLE)
        graph.insert_before(node, wide)
        users = list(value.uses())
        node.replace_input_with(0, wide.outputs[0])
        narrow = _cast(value, ir.DataType.FLOAT)
        graph.insert_after(node, narrow)
        for user, index in users:
            user.replace_input_with(index, narrow.outputs[0])
        value.type = ir.TensorType(ir.DataType.DOUBLE)
