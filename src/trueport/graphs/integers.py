"""Comparisons of int64 that ONNX Runtime gets right, in the place of operators that it does not.

Its ``Max``, ``Min``, ``Clip``, ``Sign``, ``ReduceMax`` and ``ReduceMin`` take the smaller for the larger where two numbers
are 2**31 to 2**32 apart (onnxruntime 1.31.1, x86): a hash of 32 bits, or a number of milliseconds, beside a bound.
``Greater``, ``Less``, ``Where`` and ``ArgMax`` do not.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

SHAPES = ("Shape", "Size")
"""Operators whose answers are small whatever they are asked of."""


def compare_exactly(model: ir.Model) -> None:
    """Replace them, in place, where what they compare comes from the caller's own numbers, a mask's apart."""
    for node in list(_of_the_caller(model.graph)):
        if node.domain in ("", "ai.onnx") and node.inputs and _dtype(node.inputs[0]) == ir.DataType.INT64:
            made = _Nodes(node)
            value = _FORMS[node.op_type](made, node) if node.op_type in _FORMS else None
            if value is not None:
                made.replace(value)


def _of_the_caller(graph: ir.Graph) -> Iterator[ir.Node]:
    """Nodes whose values depend on those of inputs, and not only on their shapes."""
    told = {id(value) for value in graph.inputs if not (value.name or "").endswith("mask")}
    for node in ir.traversal.RecursiveGraphIterator(graph):
        inner = node.graph is not graph  # what a body is given is anybody's
        bodies = any(attribute.type == ir.AttributeType.GRAPH for attribute in node.attributes.values())
        if node.op_type not in SHAPES and (inner or bodies or any(id(value) in told for value in node.inputs)):
            told.update(id(value) for value in node.outputs)
            yield node


def _dtype(value: ir.Value | None) -> ir.DataType | None:
    return None if value is None else value.dtype


class _Nodes:
    """New nodes in front of an old one, of the same module."""

    def __init__(self, old: ir.Node) -> None:
        self.old = old
        self.made: list[ir.Node] = []

    def add(self, kind: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        """One more node's only output."""
        node = ir.node(kind, list(inputs), attributes)
        node.metadata_props.update(self.old.metadata_props)
        self.made.append(node)
        value = node.outputs[0]
        dtype = ir.DataType.BOOL if kind in ("Greater", "Less") else ir.DataType.INT64
        value.type = ir.TensorType(dtype)
        return value

    def constant(self, content: int | list[int]) -> ir.Value:
        """A number, or several, (content,)."""
        tensor = ir.tensor(content, dtype=ir.DataType.INT64)
        node = ir.node("Constant", [], {"value": tensor})
        node.metadata_props.update(self.old.metadata_props)
        self.made.append(node)
        node.outputs[0].type, node.outputs[0].const_value = ir.TensorType(ir.DataType.INT64), tensor
        return node.outputs[0]

    def replace(self, value: ir.Value) -> None:
        """Let ``value`` stand for the old node's output, under its name."""
        old = self.old.outputs[0]
        graph = self.old.graph
        assert graph is not None
        value.shape, name = old.shape, old.name
        graph.insert_before(self.old, self.made)
        old.replace_all_uses_with(value, replace_graph_outputs=True)
        graph.remove(self.old, safe=True)
        value.name = name


def _larger(made: _Nodes, node: ir.Node) -> ir.Value | None:
    first, *rest = node.inputs
    kind = "Greater" if node.op_type == "Max" else "Less"
    assert first is not None
    for other in rest:
        first = made.add("Where", made.add(kind, first, other), first, other)
    return first if rest else None


def _clipped(made: _Nodes, node: ir.Node) -> ir.Value | None:
    value, *bounds = node.inputs
    assert value is not None
    for kind, bound in zip(("Less", "Greater"), bounds, strict=False):
        if bound is not None:
            value = made.add("Where", made.add(kind, value, bound), bound, value)
    return value if made.made else None


def _sign(made: _Nodes, node: ir.Node) -> ir.Value:
    zero = made.constant(0)
    above, below = (
        made.add("Cast", made.add(kind, node.inputs[0], zero), to=ir.DataType.INT64.value)
        for kind in ("Greater", "Less")
    )
    return made.add("Sub", above, below)


def _reduced(made: _Nodes, node: ir.Node) -> ir.Value | None:
    """One axis after the other, at the place where the largest is."""
    value = node.inputs[0]
    if value is None or value.shape is None or not len(value.shape):
        return None
    given = node.inputs[1] if len(node.inputs) > 1 else None
    listed = None if given is None else ir.convenience.get_const_tensor(given)
    if given is not None and listed is None:
        return None
    axes = list(node.attributes.get_ints("axes", ()))  # up to opset 17
    axes = [int(axis) for axis in listed.numpy().reshape(-1)] if listed is not None else axes
    if not axes and node.attributes.get_int("noop_with_empty_axes", 0) > 0:
        return None
    kind = "ArgMax" if node.op_type == "ReduceMax" else "ArgMin"
    axes = sorted({axis % len(value.shape) for axis in axes} or range(len(value.shape)))
    for axis in axes:
        value = made.add("GatherElements", value, made.add(kind, value, axis=axis, keepdims=1), axis=axis)
    return value if node.attributes.get_int("keepdims", 1) > 0 else made.add("Squeeze", value, made.constant(axes))


_FORMS = {
    "Max": _larger, "Min": _larger, "Clip": _clipped, "Sign": _sign, "ReduceMax": _reduced, "ReduceMin": _reduced,
}  # fmt: skip
