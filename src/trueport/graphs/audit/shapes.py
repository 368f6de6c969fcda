"""Shapes by ONNX's own inference, without copying the weights."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

LIGHT = 256
"""Elements up to which a constant's content may matter to a shape."""
LIMIT = 50_000
"""Nodes of the largest graph that is inferred."""

Shape = tuple[int | str | None, ...]


def infer(model: ir.Model) -> tuple[dict[str, Shape], dict[str, int]]:
    """Shapes and ONNX dtypes by value name; empty where the inference refuses the graph."""
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
    try:
        inferred = shape_inference.infer_shapes(proto, data_prop=True)
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


def _axis(axis: Any, symbols: set[str]) -> int | str | None:
    """A size, the name of an input's axis, or None: the names that the inference makes up say nothing."""
    if axis.HasField("dim_value"):
        return int(axis.dim_value) if axis.dim_value >= 0 else None
    return axis.dim_param if axis.dim_param in symbols else None
