"""Caches that lie as a step's products read them: past a few hundred tokens these take most of its time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from trueport.graphs.fusions.reading import attribute, made_by, operand, rank
from trueport.graphs.repair.builder import Builder
from trueport.interface import Interface, Tensor

IDS = "input_ids"
TURN = [0, 1, 3, 2]
KEYS, VALUES = 1, 2
"""Inputs of an Attention."""


@dataclass(frozen=True)
class _Layer:
    """An Attention over two buffers.

    Attributes:
        node: it.
        heads: of the keys and values.
        group: queries of one key head.
        turned: the input whose buffer is turned.
        cache: that buffer's name among the graph's inputs.
    """

    node: ir.Node
    heads: int
    group: int
    turned: int
    cache: str


def turn_caches(model: ir.Model, interface: Interface) -> tuple[Interface, int, str]:
    """Turn one buffer of every layer to (batch, heads, head_size, capacity), and multiply with it; in place.

    Where each query has a key head of its own, the keys: ONNX Runtime multiplies one row with a matrix as it lies about a
    third faster than with a transposed one. Where several queries share a key head, the values: keys times queries,
    (capacity, head_size) by (head_size, group), then values times weights, (head_size, capacity) by (capacity, group), read
    each cache once, where Attention reads it for every query. Several new tokens are left to Attention, which needs no
    turned scores.

    Returns:
        The interface of the graph as it is now; how many layers; why none, where there is more to say.
    """
    layers = [layer for node in model.graph if (layer := _layer(node, interface)) is not None]
    if not layers:
        return interface, 0, "no Attention reads buffers of its own in float32, with scale 1 and a mask alone"
    biases: dict[tuple[ir.Value, int], ir.Value] = {}
    steps: list[ir.Value] = []
    for layer in layers:
        node = layer.node
        build = Builder(model, node, f"turned/{node.name or node.outputs[0].name}")
        mask = operand(node, 3)
        assert mask is not None
        key = (mask, layer.group)
        if key not in biases:  # all layers' masks are one, or one for each kind of layer
            biases[key] = _bias(build, mask, layer.group)
        _write_turned(build, node, layer.turned)
        if layer.group == 1:
            _across(build, node, biases[key])
        else:
            steps = steps or [_is_step(build, model)]
            _branched(model, node, layer, steps[0], biases[key])
    return _turned(interface, {layer.cache for layer in layers}), len(layers), ""


def _layer(node: ir.Node, interface: Interface) -> _Layer | None:
    """What is to be known of an Attention that is worth it; None for any other node."""
    if node.op_type != "Attention" or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return None
    query, mask = node.inputs[0], operand(node, 3)
    plain = attribute(node, "scale", 0.0) == 1.0 and not any(attribute(node, n, 0) for n in ("is_causal", "softcap"))
    if not plain or len(node.inputs) != 4 or query is None or query.dtype != ir.DataType.FLOAT or rank(mask) != 4:
        return None
    heads = None if query.shape is None else query.shape[1]
    buffers = {pair.input for pair in interface.state if pair.in_place and pair.axis == 2}
    caches = []
    for index in (KEYS, VALUES):
        value = node.inputs[index]
        scatter = made_by(value, "TensorScatter")
        past = None if scatter is None else scatter.inputs[0]
        if value is None or len(value.uses()) != 1 or past is None or past.name not in buffers:
            return None
        if any(user is not scatter and not _measures(user) for user, _ in past.uses()):
            return None
        caches.append(str(past.name))
    shape = interface.input(caches[0]).shape
    own = shape[1]
    if not isinstance(heads, int) or not isinstance(own, int) or heads % own or not isinstance(shape[3], int):
        return None
    assert mask is not None and mask.shape is not None
    if heads != own and mask.shape[1] != 1:
        return None
    turned = KEYS if heads == own else VALUES
    return _Layer(node, own, heads // own, turned, caches[turned - 1])


def _measures(node: ir.Node) -> bool:
    """Whether it tells a buffer's capacity."""
    return node.op_type == "Shape" and (attribute(node, "start", 0), attribute(node, "end", 0)) == (2, 3)


def _bias(build: Builder, mask: ir.Value, group: int) -> ir.Value:
    """What is added to scores: (batch, 1, query, capacity), or of the last query's (batch, 1, capacity, group).

    As Attention reads a boolean mask: 0, or the lowest number, so that a row without keys is no NaN.
    """
    if group > 1:
        mask = build.op("Slice", mask, build.const([-1]), build.const([np.iinfo(np.int64).max]), build.const([2]))
    if mask.dtype in (None, ir.DataType.BOOL):
        lowest = np.finfo(np.float32).min
        mask = build.op("Where", mask, build.const(0, np.float32), build.const(lowest, np.float32))
    if group == 1:
        return mask
    # Spread over the group here, once for all layers: the runtime adds ever so slowly along a last axis of 1.
    return build.op("Expand", build.op("Transpose", mask, perm=TURN), build.const([1, 1, 1, group]))


def _write_turned(build: Builder, node: ir.Node, index: int) -> None:
    """Have a buffer's new entries turned and written along its last axis."""
    scatter = node.inputs[index].producer()  # type: ignore[union-attr]
    assert scatter is not None
    beside = Builder(build.model, scatter, build.stem)
    scatter.replace_input_with(1, beside.op("Transpose", scatter.inputs[1], perm=TURN))
    scatter.attributes["axis"] = ir.AttrInt64("axis", 3)
    past = scatter.inputs[0]
    assert past is not None
    for user, _ in past.uses():
        if user is not scatter:
            user.attributes["start"], user.attributes["end"] = ir.AttrInt64("start", 3), ir.AttrInt64("end", 4)
    past.shape = scatter.outputs[0].shape = None


def _across(build: Builder, node: ir.Node, bias: ir.Value) -> None:
    """softmax(query keys + bias) values, keys (batch, heads, head_size, capacity)."""
    query, keys, values = node.inputs[:3]
    scores = build.op("Add", build.op("MatMul", query, keys), bias)
    mixed = build.op("MatMul", build.op("Softmax", scores, axis=-1), values)
    _take_place(node, mixed)


def _is_step(build: Builder, model: ir.Model) -> ir.Value:
    ids = next(value for value in model.graph.inputs if value.name == IDS)
    return build.op("Equal", build.op("Shape", ids, start=1, end=2), build.const([1]))


def _branched(model: ir.Model, node: ir.Node, layer: _Layer, step: ir.Value, bias: ir.Value) -> None:
    """If there is one new token, the products; else the Attention, its values turned back."""
    query, keys, values, mask = node.inputs
    stem = f"turned/{node.name or node.outputs[0].name}"
    for_step, for_many = _Branch(f"{stem}/step"), _Branch(f"{stem}/many")
    grouped = for_step.op("Reshape", query, for_step.shape(0, layer.heads, layer.group, -1))
    scores = for_step.op("MatMul", keys, for_step.op("Transpose", grouped, perm=TURN))
    weights = for_step.op("Softmax", for_step.op("Add", scores, bias), axis=2)
    mixed = for_step.op("Transpose", for_step.op("MatMul", values, weights), perm=TURN)
    for_step.op("Reshape", mixed, for_step.shape(0, layer.heads * layer.group, 1, -1))
    for_many.op("Attention", query, keys, for_many.op("Transpose", values, perm=TURN), mask, scale=1.0)
    branches = {"then_branch": for_step.graph(node), "else_branch": for_many.graph(node)}
    chosen = ir.Node("", "If", [step], [ir.AttrGraph(name, graph) for name, graph in branches.items()])
    chosen.name = f"{stem}/If"
    chosen.outputs[0].name = f"{stem}/If_output"
    chosen.metadata_props.update(node.metadata_props)
    assert node.graph is not None
    node.graph.insert_before(node, chosen)
    _take_place(node, chosen.outputs[0])


class _Branch:
    """A body of an If, whose last node gives its result."""

    def __init__(self, stem: str) -> None:
        self.stem, self.nodes, self.stored = stem, list[ir.Node](), list[ir.Value]()

    def op(self, kind: str, *inputs: ir.Value | None, **attributes: list[int] | int | float) -> ir.Value:
        node = ir.node(kind, inputs, attributes)
        node.name = f"{self.stem}/{kind}_{len(self.nodes)}"
        node.outputs[0].name = f"{node.name}_output"
        self.nodes.append(node)
        return node.outputs[0]

    def shape(self, *sizes: int) -> ir.Value:
        return self.op("Constant", value_ints=list(sizes))

    def graph(self, like: ir.Node) -> ir.Graph:
        """It, with an attention's result."""
        result = self.nodes[-1].outputs[0]
        result.type, result.shape = like.outputs[0].type, like.outputs[0].shape
        for node in self.nodes:
            node.metadata_props.update(like.metadata_props)
        return ir.Graph([], [result], nodes=self.nodes, name=self.stem)


def _take_place(node: ir.Node, result: ir.Value) -> None:
    """Put a value where an attention's result was, under its name."""
    old = node.outputs[0]
    result.type, result.shape, result.name = old.type, old.shape, old.name
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    old.name = f"{old.name}_replaced"
    assert node.graph is not None
    node.graph.remove(node, safe=True)


def _turned(interface: Interface, names: set[str]) -> Interface:
    """The interface whose buffers of these names have their tokens on the last axis."""
    pairs = [pair for pair in interface.state if pair.input in names]
    named = {name for pair in pairs for name in (pair.input, pair.output)}

    def turned(tensor: Tensor) -> Tensor:
        if tensor.name not in named:
            return tensor
        return replace(tensor, shape=tuple(tensor.shape[axis] for axis in TURN))

    return replace(
        interface,
        inputs=tuple(map(turned, interface.inputs)),
        outputs=tuple(map(turned, interface.outputs)),
        state=tuple(replace(pair, axis=3) if pair.input in names else pair for pair in interface.state),
    )
