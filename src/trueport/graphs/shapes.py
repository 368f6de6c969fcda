"""Shapes that inference noted in a graph."""

from __future__ import annotations

import onnx_ir as ir


def forget_shapes(model: ir.Model) -> None:
    """Drop the shapes and types of what lies between inputs and outputs: every runtime infers them again."""
    named = {id(value) for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for value in node.outputs:
            value.metadata_props.clear()
            if id(value) not in named:
                value.shape = None
                value.type = None
