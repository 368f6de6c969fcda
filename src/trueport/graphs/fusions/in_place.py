"""Caches that a step writes into, in place of new ones that it copies the old ones to."""

from __future__ import annotations

from dataclasses import replace

import onnx_ir as ir

from trueport.graphs.fusions.reading import attribute, operand, rank
from trueport.graphs.repair.builder import Builder
from trueport.interface import CAPACITY, Dimension, Interface, StatePair, Tensor

OLDEST, OPSET = 23, 24
"""The first with Attention, and with TensorScatter; in between, operators only gained dtypes and inputs."""
MASK, IDS = "attention_mask", "input_ids"
"""Inputs that tell the lengths: the mask is past + sequence long."""


def write_in_place(model: ir.Model, interface: Interface) -> tuple[Interface, str]:
    """Make every cache that grows a buffer at least as long as the mask, its new entries written behind the past; in place.

    Where the past ends, the mask's length says, as the buffer's own no longer does. What lies behind the new entries is
    hidden by the mask, which is widened to the buffer. An input bound as its own output is then not copied.

    Args:
        model: a graph in which ``PastInside`` has left every cache to its Attention.
        interface: which input is which output of the step before.

    Returns:
        The interface of the graph as it is now, and why it cannot be done, in words; nothing was changed then.
    """
    graph = model.graph
    inputs = {str(value.name): value for value in graph.inputs}
    reason = _refusal(model, interface)
    if reason:
        return interface, reason
    build = Builder(model, next(iter(graph)), "in_place")
    past = build.op(
        "Sub", build.op("Shape", inputs[MASK], start=1, end=2), build.op("Shape", inputs[IDS], start=1, end=2)
    )
    starts = build.op("Expand", past, build.op("Shape", inputs[IDS], start=0, end=1))
    layers = []
    grown = _growing(interface)
    for pair in grown:
        for node, _ in list(inputs[pair.input].uses()):
            if node.op_type != "Shape":
                layers.append(node)
            elif attribute(node, "start", 0) == pair.axis:
                node.outputs[0].replace_all_uses_with(past)
    order = {node: index for index, node in enumerate(graph)}
    hidden: dict[ir.Value, ir.Value] = {}
    for node in sorted(dict.fromkeys(layers), key=order.__getitem__):
        mask = _mask(node)
        assert mask is not None
        if mask not in hidden:  # all buffers are of one length: the first layer's mask is every layer's
            hidden[mask] = _widened(Builder(model, node, f"in_place/{_name(node)}"), mask, inputs[grown[0].input])
        _scatter(model, node, starts, hidden[mask])
    model.opset_imports[""] = max(OPSET, model.opset_imports[""])
    return _buffered(interface), ""


def _refusal(model: ir.Model, interface: Interface) -> str:
    """Why the caches of this graph cannot be buffers, in words; empty where they can."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    outputs = {str(value.name): value for value in model.graph.outputs}
    if (model.opset_imports.get("") or 0) < OLDEST:
        return f"its opset has no Attention: export with --opset {OLDEST}"
    if rank(inputs.get(MASK)) != 2 or rank(inputs.get(IDS)) != 2:
        return f"no {MASK} beside {IDS} tells where the past ends"
    if not _growing(interface):
        return "none of its states grows with the tokens"
    for pair in _growing(interface):
        for node, index in inputs[pair.input].uses():
            one_axis = node.op_type == "Shape" and attribute(node, "end", 0) == attribute(node, "start", 0) + 1
            if not one_axis and not (_attends(node) and index in (4, 5) and rank(_mask(node)) == 4):
                return f"{pair.input} is read by {node.op_type}, not by an Attention with a mask alone"
        maker = outputs[pair.output].producer()
        if (
            maker is None
            or not _attends(maker)
            or inputs[pair.input] not in maker.inputs
            or outputs[pair.output].uses()
        ):
            return f"{pair.output} is not what an Attention alone gives from {pair.input}"
    return ""


def _growing(interface: Interface) -> list[StatePair]:
    """Keys and values; a recurrent state is small, and every step makes all of it anew."""
    return [pair for pair in interface.state if pair.initial == "empty"]


def _mask(node: ir.Node) -> ir.Value | None:
    return operand(node, 3)


def _attends(node: ir.Node) -> bool:
    return node.op_type == "Attention" and node.domain in ("", "ai.onnx")


def _buffered(interface: Interface) -> Interface:
    """The interface whose caches have a length of their own."""
    grown = _growing(interface)
    named = {name: pair.axis for pair in grown for name in (pair.input, pair.output)}

    def wider(tensor: Tensor) -> Tensor:
        axes = list(tensor.shape)
        if tensor.name in named:
            axes[named[tensor.name]] = CAPACITY
        return replace(tensor, shape=tuple(axes))

    return replace(
        interface,
        inputs=tuple(map(wider, interface.inputs)),
        outputs=tuple(map(wider, interface.outputs)),
        dimensions=(*interface.dimensions, Dimension(CAPACITY, 0)),
        state=tuple(replace(pair, in_place=True) if pair in grown else pair for pair in interface.state),
    )


def _name(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)


def _widened(build: Builder, mask: ir.Value, cache: ir.Value) -> ir.Value:
    """The mask with the room behind its end hidden, as long as the cache: (batch, heads, query, capacity)."""
    wide = build.op("Shape", cache, start=2, end=3)
    missing = build.op("Sub", wide, build.op("Shape", mask, start=3, end=4))
    hidden = build.op("Pad", mask, build.op("Concat", build.const([0] * 7), missing, axis=0))
    if mask.dtype != ir.DataType.BOOL:
        assert mask.dtype is not None
        fill = build.const(float("-inf"), mask.dtype.numpy())
        hidden.producer().resize_inputs(3)  # type: ignore[union-attr]
        hidden.producer().replace_input_with(2, fill)  # type: ignore[union-attr]
    return hidden


def _scatter(model: ir.Model, node: ir.Node, starts: ir.Value, hidden: ir.Value) -> None:
    """One layer: its new keys and values written into the buffers, and attention over these."""
    query, *new, _, past_k, past_v = node.inputs[:6]
    build = Builder(model, node, f"in_place/{_name(node)}")
    buffers = []
    for past, entry, old in zip((past_k, past_v), new, node.outputs[1:3], strict=True):
        buffer = build.op("TensorScatter", past, entry, starts, axis=2)
        buffer.type, buffer.shape = old.type, None
        name = old.name
        old.replace_all_uses_with(buffer, replace_graph_outputs=True)
        old.name, buffer.name = f"{name}_replaced", name
        buffers.append(buffer)
    attended = ir.node("Attention", [query, *buffers, hidden], dict(node.attributes.items()))
    attended.name = node.name
    attended.metadata_props.update(node.metadata_props)
    assert node.graph is not None
    node.graph.insert_before(node, attended)
    kept = node.outputs[0]
    attended.outputs[0].type, attended.outputs[0].shape, attended.outputs[0].name = kept.type, kept.shape, kept.name
    kept.replace_all_uses_with(attended.outputs[0], replace_graph_outputs=True)
    kept.name = f"{kept.name}_replaced"
    node.graph.remove(node, safe=True)
