"""Putting nodes into a graph, the same for every opset."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

OLDEST = 11
"""The first opset with Range; older graphs are refused."""


class Builder:
    """Inserts nodes beside an anchor.

    Args:
        model: the model, for its opset and its stored constants.
        anchor: nodes go in front of it.
        stem: names begin with this, and with more where the graph has such names: it may have been repaired before.
        behind: whether they go behind it instead.
    """

    def __init__(self, model: ir.Model, anchor: ir.Node, stem: str, *, behind: bool = False) -> None:
        self.model = model
        self.anchor = anchor
        self.stem = _free(model, stem)
        self.opset = model.opset_imports.get("") or 0
        self._count = 0
        self._last = anchor if behind else None

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """One node with one output."""
        values = [ir.Attr(name, _kind(value), value) for name, value in attributes.items()]
        node = ir.Node("", kind, inputs, values)
        self._count += 1
        node.name = f"{self.stem}/{kind}_{self._count}"
        node.outputs[0].name = f"{node.name}_output"
        node.metadata_props.update(self.anchor.metadata_props)
        assert self.anchor.graph is not None
        if self._last is None:
            self.anchor.graph.insert_before(self.anchor, node)
        else:
            self.anchor.graph.insert_after(self._last, node)
            self._last = node
        return node.outputs[0]

    def const(self, content: Any, dtype: Any = np.int64) -> ir.Value:
        """A stored constant."""
        array = np.asarray(content, dtype=dtype)
        self._count += 1
        name = f"{self.stem}/const_{self._count}"
        value = ir.Value(
            name=name, type=ir.TensorType(ir.DataType.from_numpy(array.dtype)), shape=ir.Shape(array.shape)
        )
        value.const_value = ir.tensor(array, name=name)
        self.model.graph.register_initializer(value)
        return value

    def cast(self, value: ir.Value, dtype: ir.DataType) -> ir.Value:
        """The value in another dtype."""
        return self.op("Cast", value, to=dtype.value)

    def unsqueeze(self, value: ir.Value, axes: Sequence[int]) -> ir.Value:
        """New axes of size 1; their list became an input with opset 13."""
        if self.opset < 13:
            return self.op("Unsqueeze", value, axes=list(axes))
        return self.op("Unsqueeze", value, self.const(list(axes)))

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of one axis, a scalar."""
        return self.op("Gather", self.op("Shape", value), self.const(axis), axis=0)

    def part(self, value: ir.Value, start: int, end: int, axis: int) -> ir.Value:
        """Entries ``start`` to ``end`` of an axis."""
        return self.op("Slice", value, self.const([start]), self.const([end]), self.const([axis]))

    def conjunction(self, conditions: Sequence[ir.Value]) -> ir.Value:
        """All of them."""
        whole = conditions[0]
        for condition in conditions[1:]:
            whole = self.op("And", whole, condition)
        return whole


def _free(model: ir.Model, stem: str) -> str:
    """A beginning that no name of the graph has."""
    nodes = list(ir.traversal.RecursiveGraphIterator(model.graph))
    graphs = {id(node.graph): node.graph for node in nodes if node.graph is not None} | {0: model.graph}
    names = {node.name for node in nodes} | {value.name for node in nodes for value in node.outputs}
    names |= {value.name for graph in graphs.values() for value in (*graph.inputs, *graph.initializers.values())}
    like = [name for name in names if name and name.startswith(stem)]
    while any(name.startswith(f"{stem}/") for name in like):
        stem += "_"
    return stem


def _kind(value: Any) -> ir.AttributeType:
    if isinstance(value, list):
        return ir.AttributeType.INTS
    return ir.AttributeType.FLOAT if isinstance(value, float) else ir.AttributeType.INT
