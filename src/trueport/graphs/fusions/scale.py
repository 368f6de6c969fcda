"""Attention whose scale is taken by the queries: a product of one row with the keys that needs no copy of these."""

from __future__ import annotations

import math

import onnx_ir as ir

from trueport.graphs.fusions.reading import attribute
from trueport.graphs.repair.builder import Builder


def scale_queries(model: ir.Model) -> int:
    """Multiply every Attention's queries by its scale, and let the operator scale by 1; how many, in place.

    Scores are (scale · q)·k in place of scale · (q·k). ONNX Runtime's product of a single row with a transposed matrix
    reads that matrix as it lies only where nothing else is multiplied in; otherwise it packs all keys anew at each step.
    """
    found = [(node, scale) for node in model.graph if (scale := _scale(node)) is not None]
    for node, scale in found:
        query = node.inputs[0]
        assert query is not None and query.dtype is not None
        build = Builder(model, node, f"scaled/{node.name or node.outputs[0].name}")
        scaled = build.op("Mul", query, build.const(scale, query.dtype.numpy()))
        scaled.type, scaled.shape = query.type, query.shape
        node.replace_input_with(0, scaled)
        node.attributes["scale"] = ir.AttrFloat32("scale", 1.0)
    return len(found)


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
