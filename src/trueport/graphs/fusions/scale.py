"""Attention whose scale is taken by the queries: a product of one row with the keys that needs no copy of these."""

from __future__ import annotations

import math

import onnx_ir as ir

from trueport.graphs.fusions.reading import attribute, made_by
from trueport.graphs.repair.builder import Builder


def scale_queries(model: ir.Model) -> int:
    """Multiply every Attention's queries by its scale, and let the operator scale by 1; how many, in place.

    Scores are (scale · q)·k in place of scale · (q·k). ONNX Runtime's product of a single row with a transposed matrix
    reads that matrix as it lies only where nothing else is multiplied in; otherwise it packs all keys anew at each step.
    """
    found = [(node, scale) for node in model.graph if (scale := _scale(node)) is not None]
    known: dict[tuple[ir.Value, float], ir.Value] = {}
    for node, scale in found:
        query = node.inputs[0]
        assert query is not None
        turned = _turned(query)
        if turned is None:
            node.replace_input_with(0, _times(model, node, query, scale))
        else:
            for index in (1, 2):
                angle = turned.inputs[index]
                assert angle is not None
                if (angle, scale) not in known:
                    known[angle, scale] = _times(model, turned, angle, scale)
                turned.replace_input_with(index, known[angle, scale])
        node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    return len(found)


def _turned(query: ir.Value) -> ir.Node | None:
    """The RotaryEmbedding that gives queries to one attention alone, by angles of its own rows.

    It is linear: scaled cosines and sines, which all layers have in common, give scaled queries.
    """
    node = made_by(query, "RotaryEmbedding")
    if node is None or len(query.uses()) != 1 or query.is_graph_output():
        return None
    whole = attribute(node, "rotary_embedding_dim", 0) == 0  # what is not turned would not be scaled
    return node if whole and len(node.inputs) == 3 else None


def _times(model: ir.Model, anchor: ir.Node, value: ir.Value, scale: float) -> ir.Value:
    """A float32 value times a number, computed in front of a node."""
    assert value.dtype is not None
    build = Builder(model, anchor, f"scaled/{anchor.name or anchor.outputs[0].name}/{value.name}")
    product = build.op("Mul", value, build.const(scale, value.dtype.numpy()))
    product.type, product.shape = value.type, value.shape
    return product


def _scale(node: ir.Node) -> float | None:
    """What an Attention over four axes multiplies its scores by; None where that is 1 already, or not known."""
    if node.op_type != "Attention" or node.domain not in ("", "ai.onnx"):
        return None
    query = node.inputs[0]
    if query is None or query.shape is None or len(query.shape) != 4 or query.dtype != ir.DataType.FLOAT:
        return None
    size = query.shape[3]
    if "scale" not in node.attributes and not isinstance(size, int):
        return None
    scale = float(attribute(node, "scale", 1 / math.sqrt(size) if isinstance(size, int) and size else 1.0))
    return None if scale == 1.0 else scale
