"""Graphs within nodes: what enters a branch or a body, and where what it makes leaves it."""

from __future__ import annotations

import onnx_ir as ir


def inner_graphs(node: ir.Node) -> list[ir.Graph]:
    """The graphs inside a node: an If's branches, a Loop's body."""
    found: list[ir.Graph] = []
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type == ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def entered(node: ir.Node, place: int) -> list[ir.Value]:
    """The values that depend on an input of a node with graphs inside: of a Loop or Scan, the body's input."""
    (body, *others) = inner_graphs(node)
    if node.op_type in ("Loop", "Scan") and not others and place < len(body.inputs):
        # A loop's number of turns and its condition decide about everything.
        return list(node.outputs) if node.op_type == "Loop" and place < 2 else [body.inputs[place]]
    return [*node.outputs, *(value for graph in (body, *others) for value in graph.inputs)]


def left(node: ir.Node, value: ir.Value) -> list[ir.Value]:
    """The values that an output of a graph inside ``node`` becomes: outputs of the node, and the next turn's state."""
    found: list[ir.Value] = []
    for graph in inner_graphs(node):
        for place in (place for place, output in enumerate(graph.outputs) if output is value):
            shift = 1 if node.op_type == "Loop" else 0
            if place < shift:
                found += node.outputs
            else:
                found += node.outputs[place - shift : place - shift + 1]
            states = _states(node, graph)
            if shift <= place < shift + states:
                found.append(graph.inputs[place + shift])
    return found


def given(node: ir.Node) -> list[tuple[ir.Value, ir.Value]]:
    """The inputs of a Loop's or Scan's body, and what they are before the first turn; not what the loop itself counts."""
    first = 2 if node.op_type == "Loop" else 0
    pairs = [
        pair for graph in inner_graphs(node) for pair in list(zip(graph.inputs, node.inputs, strict=False))[first:]
    ]
    return [(own, outer) for own, outer in pairs if outer is not None]


def inside(node: ir.Node, value: ir.Value) -> ir.Value:
    """The output of a Loop's or Scan's body that an output of the node is after the last turn, or is made of."""
    body = inner_graphs(node)[0]
    place = list(node.outputs).index(value) + (1 if node.op_type == "Loop" else 0)
    return body.outputs[place]


def _states(node: ir.Node, body: ir.Graph) -> int:
    if node.op_type == "Loop":
        return len(body.inputs) - 2
    if node.op_type == "Scan":
        return len(node.inputs) - int(node.attributes["num_scan_inputs"].value)
    return 0
