"""Shapes that a graph declares, or inference noted in it, and its size."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import onnx


def free_axes(proto: onnx.ModelProto) -> None:
    """Axes of size -1 have no size from then on: some exporters write any length so, and ONNX Runtime reads it so."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_value < 0:
                axis.Clear()


def count_nodes(path: Path) -> int:
    """Operators in a graph's file, those of its branches and functions not counted."""
    import onnx

    return len(onnx.load(path, load_external_data=False).graph.node)


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes and types of what lies between inputs and outputs: every runtime infers them again."""
    named = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in named:
                value.shape = None
                value.type = None


def infer_shapes(model: ir.Model) -> None:
    """ONNX's shape inference, in place; quantised products, which it does not know and stops at, stand in as MatMul."""
    from onnx_ir.passes.common import ShapeInferencePass

    if not any(map(_is_quantised_product, model.graph)):
        ShapeInferencePass()(model)
        return
    stand_in = model.clone()
    for node in list(stand_in.graph):
        if _is_quantised_product(node):
            _as_product(stand_in, node)
    ShapeInferencePass()(stand_in)
    found = {value.name: value for node in stand_in.graph for value in node.outputs}
    for node in model.graph:
        for value in node.outputs:
            if value.name in found:
                value.type, value.shape = found[value.name].type, found[value.name].shape


def _is_quantised_product(node: ir.Node) -> bool:
    return node.domain == "com.microsoft" and node.op_type in ("MatMulNBits", "MatMulIntegerToFloat")


def _as_product(model: ir.Model, node: ir.Node) -> None:
    """One product as a MatMul in float32, its matrix an input without content."""
    given, weight, old = node.inputs[0], node.inputs[1], node.outputs[0]
    sizes: list[int | None] = [None, None]
    if "K" in node.attributes:
        sizes = [int(node.attributes[name].value) for name in ("K", "N")]
    elif weight is not None and weight.shape is not None:
        sizes = [size if isinstance(size, int) else None for size in weight.shape]
    kind = ir.TensorType(ir.DataType.FLOAT)
    matrix = ir.Value(name=f"{old.name}/matrix", type=kind, shape=ir.Shape(sizes))
    model.graph.inputs.append(matrix)
    cast = ir.node("Cast", [given], {"to": ir.DataType.FLOAT.value})
    cast.outputs[0].name = f"{old.name}/float"
    product = ir.node("MatMul", [cast.outputs[0], matrix])
    ir.convenience.replace_nodes_and_values(model.graph, node, [node], [cast, product], [old], [product.outputs[0]])
    product.outputs[0].name = old.name
