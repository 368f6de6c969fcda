"""What a graph says of a value without being run."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

SMALL = 64
"""Elements of the largest constant that a fusion reads; weights are never read."""


def numbers(value: ir.Value | None) -> list[Any] | None:
    """A small constant's elements in order; None for what is none."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    if tensor is None or tensor.size > SMALL:
        return None
    return list(tensor.numpy().reshape(-1).tolist())


def scalar(value: ir.Value | None) -> Any:
    """A constant's only element; None for what is none."""
    found = numbers(value)
    return found[0] if found is not None and len(found) == 1 else None


def rank(value: ir.Value | None) -> int | None:
    """Number of axes, where shape inference knows it."""
    return None if value is None or value.shape is None else len(value.shape)


def made_by(value: ir.Value | None, kind: str) -> ir.Node | None:
    """The node of ONNX's own operator that gives the value as its first output; None where another does."""
    node = None if value is None else value.producer()
    if node is None or node.op_type != kind or node.domain not in ("", "ai.onnx"):
        return None
    return node if node.outputs[0] is value else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """An attribute's value, or what the operator takes without it."""
    return node.attributes[name].value if name in node.attributes else default


def operand(node: ir.Node, index: int) -> ir.Value | None:
    """An input that older or shorter forms of an operator may lack."""
    return node.inputs[index] if index < len(node.inputs) else None


def parts(shape: ir.Value) -> list[ir.Value] | None:
    """The lengths that a shape was put together from, one value for each axis."""
    node = made_by(shape, "Concat")
    if node is None or attribute(node, "axis", 0) != 0 or any(value is None for value in node.inputs):
        return None
    return [value for value in node.inputs if value is not None]


def same_size(first: int | ir.SymbolicDim, second: int | ir.SymbolicDim) -> bool:
    """Whether two axes are surely of one length."""
    return first == second and (isinstance(first, int) or first.value is not None)
