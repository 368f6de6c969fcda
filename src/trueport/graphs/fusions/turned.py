"""Caches that lie as a step's products read them: past a few hundred tokens these take most of its time."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from trueport.graphs.fusions.reading import attribute, made_by, numbers, operand, parts, rank, same_size
from trueport.graphs.repair.builder import Builder
from trueport.interface import Interface, Tensor

TURN = [0, 1, 3, 2]
KEYS, VALUES = 1, 2
"""Inputs of an Attention."""
ROWWISE = ("RotaryEmbedding", "RMSNormalization", "LayerNormalization", "Identity")
"""Operators whose result has the axes of their first input."""


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
    """Turn one buffer of every layer to (batch, heads, head_size, capacity), and multiply a single new token with it.

    Where each query has a key head of its own, the keys: ONNX Runtime multiplies one row with a matrix as it lies about a
    third faster than with a transposed one. Where several queries share a key head, the values: keys times queries,
    (capacity, head_size) by (head_size, group), then values times weights, (head_size, capacity) by (capacity, group), read
    each cache once, where Attention reads it for every query. Several new tokens, and rows that see no key, are left to
    Attention, for which the buffer is turned back.

    Returns:
        The interface of the graph as it is now; how many layers; why none, where there is more to say.
    """
    layers = [layer for node in model.graph if (layer := _layer(node, interface)) is not None]
    if not layers:
        return interface, 0, "no Attention reads buffers of its own in float32, with scale 1 and a mask alone"
    known: dict[tuple[ir.Value, int], tuple[ir.Value, ir.Value]] = {}
    for layer in layers:
        node = layer.node
        build = Builder(model, node, f"turned/{node.name or node.outputs[0].name}")
        mask = operand(node, 3)
        assert mask is not None
        key = (mask, layer.group)
        if key not in known:  # all layers' masks are one, or one for each kind of layer
            known[key] = _bias_and_step(build, mask, layer.group)
        _write_turned(build, node, layer.turned)
        _branch(node, layer, build.stem, *known[key])
    return _turned(interface, {layer.cache for layer in layers}), len(layers), ""


def _layer(node: ir.Node, interface: Interface) -> _Layer | None:
    """What is to be known of an Attention that is worth it; None for any other node."""
    if node.op_type != "Attention" or node.domain not in ("", "ai.onnx") or len(node.outputs) != 1:
        return None
    query, mask = node.inputs[0], operand(node, 3)
    plain = attribute(node, "scale", 0.0) == 1.0 and not any(attribute(node, n, 0) for n in ("is_causal", "softcap"))
    if not plain or len(node.inputs) != 4 or query is None or query.dtype != ir.DataType.FLOAT or rank(mask) != 4:
        return None
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
    heads, own = heads_of(query), interface.input(caches[0]).shape[1]
    if heads is None or not isinstance(own, int) or heads % own or (heads != own and not _is_every_heads(mask)):
        return None
    turned = KEYS if heads == own else VALUES
    return _Layer(node, own, heads // own, turned, caches[turned - 1])


def heads_of(query: ir.Value | None, axis: int = 1) -> int | None:
    """The heads of queries (batch, heads, query, head_size), also where a shape leaves them to be worked out; None unknown.

    They are what a projection's width (batch, query, heads * head_size) is divided into.
    """
    if query is None or query.shape is None or len(query.shape) != 4:
        return None
    if isinstance(query.shape[axis], int):
        return int(query.shape[axis])  # type: ignore[arg-type]
    node = query.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Transpose" and attribute(node, "perm", None) in ([0, 2, 1, 3], (0, 2, 1, 3)):
        return heads_of(node.inputs[0], 3 - axis)
    if node.op_type in ROWWISE:
        return heads_of(node.inputs[0], axis)
    given = node.inputs[0] if node.op_type == "Reshape" else None
    if given is None or given.shape is None or len(given.shape) != 3 or axis != 2:
        return None
    width, size = given.shape[2], query.shape[3]
    kept = all(same_size(given.shape[index], query.shape[index]) for index in (0, 1))
    return width // size if kept and isinstance(width, int) and isinstance(size, int) and size else None


def _is_every_heads(mask: ir.Value | None) -> bool:
    """Whether a mask (batch, 1, query, keys), widened to the buffers or not, is the same for all heads."""
    node = made_by(mask, "Pad")
    if node is not None and len(node.inputs) > 1 and node.inputs[1] is not None:
        pads = parts(node.inputs[1])
        if pads is None or numbers(pads[0]) != [0] * 7:
            return False
        mask = node.inputs[0]
    return mask is not None and mask.shape is not None and mask.shape[1] == 1


def _measures(node: ir.Node) -> bool:
    """Whether it tells a buffer's capacity."""
    return node.op_type == "Shape" and (attribute(node, "start", 0), attribute(node, "end", 0)) == (2, 3)


def _bias_and_step(build: Builder, mask: ir.Value, group: int) -> tuple[ir.Value, ir.Value]:
    """What is added to the scores of the last query, and whether that is the only one and sees a key in every row.

    The first is (batch, 1, 1, capacity), or where queries share a head (batch, 1, capacity, group).
    """
    end, lowest = np.iinfo(np.int64).max, np.finfo(np.float32).min
    bias = build.op("Slice", mask, build.const([-1]), build.const([end]), build.const([2]))
    if mask.dtype != ir.DataType.FLOAT:
        bias = build.op("Where", bias, build.const(0, np.float32), build.const(lowest, np.float32))
    seen = build.op("ReduceMin", build.op("ReduceMax", bias, build.const([3])), keepdims=0)
    step = build.op("Equal", build.op("Shape", mask, start=2, end=3), build.const([1]))
    step = build.op("And", step, build.op("Greater", seen, build.const(lowest / 2, np.float32)))
    if group > 1:
        # Spread over the group here, once for all layers: the runtime adds ever so slowly along a last axis of 1.
        bias = build.op("Expand", build.op("Transpose", bias, perm=TURN), build.const([1, 1, 1, group]))
    return bias, step


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


def _branch(node: ir.Node, layer: _Layer, stem: str, bias: ir.Value, step: ir.Value) -> None:
    """If there is one new token, the products; else the Attention, its buffer turned back."""
    query, keys, values, mask = node.inputs
    for_step, for_many = _Branch(f"{stem}/step"), _Branch(f"{stem}/many")
    if layer.group == 1:
        scores = for_step.op("Add", for_step.op("MatMul", query, keys), bias)
        for_step.op("MatMul", for_step.op("Softmax", scores, axis=-1), values)
        for_many.op("Attention", query, for_many.op("Transpose", keys, perm=TURN), values, mask, scale=1.0)
    else:
        grouped = for_step.op("Reshape", query, for_step.shape(0, layer.heads, layer.group, -1))
        scores = for_step.op("MatMul", keys, for_step.op("Transpose", grouped, perm=TURN))
        weights = for_step.op("Softmax", for_step.op("Add", scores, bias), axis=2)
        mixed = for_step.op("Transpose", for_step.op("MatMul", values, weights), perm=TURN)
        for_step.op("Reshape", mixed, for_step.shape(0, layer.heads * layer.group, 1, -1))
        for_many.op("Attention", query, keys, for_many.op("Transpose", values, perm=TURN), mask, scale=1.0)
    branches = {"then_branch": for_step.graph(node), "else_branch": for_many.graph(node)}
    chosen = ir.Node("", "If", [step], [ir.AttrGraph(name, graph) for name, graph in branches.items()])
    chosen.name = f"{stem}/If"
    chosen.metadata_props.update(node.metadata_props)
    owner, old, new = node.graph, node.outputs[0], chosen.outputs[0]
    assert owner is not None
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(owner, node, [node], [chosen], [old], [new])


class _Branch:
    """A body of an If, whose last node gives its result."""

    def __init__(self, stem: str) -> None:
        self.stem, self.nodes = stem, list[ir.Node]()

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
