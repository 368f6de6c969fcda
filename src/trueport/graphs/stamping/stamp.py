"""Copies of the second repetition, put between it and the last one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import onnx_ir as ir

from trueport.graphs.stamping import RefusedError
from trueport.graphs.stamping.match import Match, Names, match, redirect
from trueport.graphs.stamping.trace import Twins

WeightOf = Callable[[str, ir.Value], ir.TensorProtocol]
"""A weight's name and its twin in the second repetition to its tensor."""


def stamp(
    graph: ir.Graph,
    names: Names,
    twins: Sequence[Twins],
    inputs: Sequence[str],
    outputs: Sequence[str],
    weight_of: WeightOf,
) -> set[str]:
    """Put the layers that a shortened graph lacks into it; returns the names of their weights.

    Args:
        graph: with three repetitions; in place.
        names: of its parts.
        twins: the state of every repetition.
        inputs: names of the whole graph's inputs, in order.
        outputs: names of its outputs, in order.
        weight_of: a missing weight.

    Raises:
        RefusedError: the repetitions are not equal, or a weight has no counterpart; the graph is of no use then.
    """
    found = match(graph, names, twins[-1])
    made = _Made(graph, names, found)
    for block in range(2, names.stack.repeats - 1):
        made.block(block, twins[block], weight_of)
    given = {str(value.name): value for value in graph.inputs} | made.inputs
    results = {str(value.name): value for value in graph.outputs} | made.outputs
    if set(given) != set(inputs) or set(results) != set(outputs):
        raise RefusedError("some of the layers' states belong to no layer of the graph")
    made.insert()
    graph.inputs.clear()
    graph.inputs.extend(given[name] for name in inputs)
    graph.outputs.clear()
    graph.outputs.extend(results[name] for name in outputs)
    return set(made.weights)


class _Made:
    """What is new, not yet in the graph."""

    def __init__(self, graph: ir.Graph, names: Names, found: Match) -> None:
        self.graph, self.names, self.found = graph, names, found
        self.nodes: list[ir.Node] = []
        self.inputs: dict[str, ir.Value] = {}
        self.outputs: dict[str, ir.Value] = {}
        self.weights: dict[str, ir.Value] = {}
        self.previous = found.nodes

    def block(self, number: int, twins: Twins, weight_of: WeightOf) -> None:
        """One more repetition behind what there is."""
        layers = self.names.stack.start(number) - self.names.stack.start(1)
        values: dict[ir.Value, ir.Value] = {
            value: self.previous[index].outputs[place] for value, (index, place) in self.found.carried.items()
        }
        for value in sorted(self.found.inputs, key=lambda value: str(value.name)):
            name = twins.inputs[str(value.name)]
            values[value] = self.inputs[name] = ir.Value(name=name, type=value.type, shape=value.shape)
        for value in sorted(self.found.weights, key=lambda value: str(value.name)):
            name = self.names.moved(str(value.name), layers)
            tensor = weight_of(name, value)
            self.weights[name] = ir.Value(name=name, type=value.type, shape=value.shape, const_value=tensor)
            values[value] = self.weights[name]
        copies = [self.node(node, values, layers) for node in self.found.nodes]
        for value in self.found.outputs:
            name = twins.outputs[str(value.name)]
            self.outputs[name] = values[value]
            values[value].name = name
        self.nodes += copies
        self.previous = copies

    def node(self, node: ir.Node, values: dict[ir.Value, ir.Value], layers: int) -> ir.Node:
        """A copy that reads the copies' values; its outputs are added to them."""
        attributes = []
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph().clone(allow_outer_scope_values=True)
                self.relabel(body, layers)
                attribute = ir.Attr(attribute.name, ir.AttributeType.GRAPH, body)
            attributes.append(attribute)
        copy = ir.Node(
            node.domain, node.op_type, node.inputs, attributes, overload=node.overload,
            num_outputs=len(node.outputs), version=node.version, metadata_props=dict(node.metadata_props),
        )  # fmt: skip
        self.label(copy, layers)
        redirect(copy, lambda value: values.get(value, value))
        for value, other in zip(node.outputs, copy.outputs, strict=True):
            other.type = value.type
            values[value] = other
        return copy

    def relabel(self, body: ir.Graph, layers: int) -> None:
        for inner in ir.traversal.RecursiveGraphIterator(body):
            self.label(inner, layers)

    def label(self, node: ir.Node, layers: int) -> None:
        """The path of the module, so many layers on."""
        path = node.metadata_props.get(self.names.module_key, "")
        if self.names.place(path) is not None:
            node.metadata_props[self.names.module_key] = self.names.moved(path, layers)

    def insert(self) -> None:
        """Into the graph, the last repetition behind it."""
        for value in self.weights.values():
            self.graph.initializers.add(value)
        self.graph.insert_before(self.found.last[0], self.nodes)
        final: Mapping[ir.Value, ir.Value] = {
            old: new
            for node, copy in zip(self.found.nodes, self.previous, strict=True)
            for old, new in zip(node.outputs, copy.outputs, strict=True)
        }
        for node in self.found.last:
            redirect(node, lambda value: final.get(value, value))
