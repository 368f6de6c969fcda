"""Shapes by ONNX's own inference, without copying the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx_ir as ir

LIGHT = 256
"""Elements up to which a constant's content may matter to a shape."""
MOST_WORKED_OUT = 1 << 16
"""Numbers that the inference may work out for one value; shapes have a dozen, positions some thousand."""
MOST_AXES = 64
"""More than any tensor has."""
WORKED_OUT = {"Add", "Cast", "Concat", "Gather", "Mul", "Size", "Slice", "Squeeze", "Sub", "Unsqueeze"}
"""Operators, Shape and Range apart, whose content ONNX's inference works out (``has_data_propagation_function``)."""
LIMIT = 50_000
"""Nodes of the largest graph that is inferred."""

Shape = tuple[int | str | None, ...]


def infer(
    model: ir.Model, given: Mapping[str, Sequence[int]] | None = None, axes: Mapping[str, int] | None = None
) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes and ONNX dtypes by value name; empty where the inference refuses the graph.

    Args:
        model: the graph.
        given: of inputs, by name, shapes in place of their own.
        axes: sizes of named axes, wherever else the names stand.
    """
    import onnx
    from onnx import shape_inference

    if model.graph.num_nodes() > LIMIT:
        return {}, {}
    held = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.size > LIGHT:
            held[value] = tensor
            shape = ir.Shape(tensor.shape.numpy())
            value.const_value = ir.ExternalTensor("-", 0, 0, tensor.dtype, shape=shape, name=value.name or "")
    try:
        proto = ir.to_proto(model)
    finally:
        for value, tensor in held.items():
            value.const_value = tensor
    if given is not None:
        _set_sizes(proto.graph, given, axes or {})
    try:
        inferred = shape_inference.infer_shapes(proto, data_prop=_most_worked_out(model) <= MOST_WORKED_OUT)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}, {}
    graph = inferred.graph
    declared = (axis for value in model.graph.inputs for axis in value.shape or ())
    symbols = {str(axis.value) for axis in declared if not isinstance(axis, int) and axis.value}
    values = [*graph.value_info, *graph.input, *graph.output]
    shapes = {
        value.name: tuple(_axis(axis, symbols) for axis in value.type.tensor_type.shape.dim)
        for value in values
        if value.type.tensor_type.HasField("shape")
    }
    return shapes, {value.name: value.type.tensor_type.elem_type for value in values}


def _set_sizes(graph: Any, given: Mapping[str, Sequence[int]], axes: Mapping[str, int]) -> None:
    for value in graph.input:
        for axis, size in zip(value.type.tensor_type.shape.dim, given.get(value.name, ()), strict=False):
            axis.dim_value = size
    for value in (*graph.value_info, *graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                known = axes.get(axis.dim_param)
                axis.Clear()
                if known is not None:
                    axis.dim_value = known


def _most_worked_out(model: ir.Model) -> int:
    """Numbers of the largest value whose content the inference would work out: it keeps them all, one by one."""
    sizes: dict[int, int] = {}
    most = 0
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        held = [sizes.get(id(value), _held(value)) for value in node.inputs if value is not None]
        size = 0
        if node.op_type == "Range":
            size = _counted(node)
        elif node.op_type == "Constant":
            size = LIGHT
        elif node.op_type == "Shape":
            size = MOST_AXES
        elif node.op_type in WORKED_OUT and held:
            size = sum(held) if node.op_type == "Concat" else max(held)
        sizes.update({id(value): size for value in node.outputs})
        most = max(most, size)
        if most > MOST_WORKED_OUT:
            return most
    return most


def _held(value: ir.Value) -> int:
    """Numbers of a stored tensor that the inference sees."""
    return value.const_value.size if value.const_value is not None and value.const_value.size <= LIGHT else 0


def _counted(node: ir.Node) -> int:
    """How many numbers a Range over constants gives; 0 for other ranges, which the inference does not work out."""
    ends: list[float] = []
    for value in node.inputs:
        tensor = ir.convenience.get_const_tensor(value) if value is not None else None
        if tensor is None or tensor.size != 1 or isinstance(tensor, ir.ExternalTensor):
            return 0
        ends.append(float(tensor.numpy().flat[0]))
    start, limit, step = ends
    return max(int((limit - start) / step), 0) if len(ends) == 3 and step else 0


def _axis(axis: Any, symbols: set[str]) -> int | str | None:
    """A size, the name of an input's axis, or None: the names that the inference makes up say nothing."""
    if axis.HasField("dim_value"):
        return int(axis.dim_value) if axis.dim_value >= 0 else None
    return axis.dim_param if axis.dim_param in symbols else None
