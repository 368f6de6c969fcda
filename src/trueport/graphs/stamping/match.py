"""The second repetition held against the last one in the graph, node by node."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field

import onnx_ir as ir

from trueport.graphs.stamping import RefusedError
from trueport.graphs.stamping.stacks import Stack
from trueport.graphs.stamping.trace import Twins

Place = tuple[int, int]
"""A node of a repetition, and which of its outputs."""


@dataclass(frozen=True)
class Names:
    """How a graph calls the parts of a stack."""

    stack: Stack
    weights: Collection[str]
    module_key: str

    def place(self, name: str) -> tuple[int, str] | None:
        """The layer that a weight or a module path belongs to, and the rest of the name."""
        return self.stack.place(name) or self.stack.place(f"model.{name}")

    def moved(self, name: str, layers: int) -> str:
        """The same part so many layers on."""
        index, rest = self.place(name) or (0, "")
        head = name[: -len(rest) - 1] if rest else name
        owner = head[: -len(self.stack.keys[index])]
        return f"{owner}{self.stack.keys[index + layers]}" + (f".{rest}" if rest else "")


@dataclass
class Match:
    """The second repetition, and what of it is other in every repetition.

    Attributes:
        nodes: of the second repetition.
        last: of the last one.
        carried: values from before that are the previous repetition's outputs at these places, one on.
        weights: initializers of the layers' own.
        inputs: graph inputs that hold its state.
        outputs: its nodes' outputs that are the graph's.
    """

    nodes: list[ir.Node]
    last: list[ir.Node]
    carried: dict[ir.Value, Place] = field(default_factory=dict)
    weights: set[ir.Value] = field(default_factory=set)
    inputs: set[ir.Value] = field(default_factory=set)
    outputs: set[ir.Value] = field(default_factory=set)


def match(graph: ir.Graph, names: Names, last: Twins) -> Match:
    """Find the second and the last repetition in a graph of three, and hold them against each other.

    Args:
        graph: of the shortened model.
        names: of its parts.
        last: the last repetition's state by the second's.

    Raises:
        RefusedError: they are not equal; the message says where.
    """
    nodes = list(graph)
    stack = names.stack
    second, third = _end(nodes, names, 0), _end(nodes, names, 1)
    end = _end(nodes, names, stack.repeats - 1)
    if not second < third < end or end - third != third - second:
        raise RefusedError(f"the graph does not hold the layers of {stack.path} one after the other, or not as equals")
    found = Match(nodes[second:third], nodes[third:end])
    _Comparison(found, names, last, nodes[:second]).run()
    _refuse_other_users(found, nodes[end:])
    return found


def _end(nodes: list[ir.Node], names: Names, block: int) -> int:
    """Behind the last node of a repetition's last layer."""
    wanted = names.stack.start(block + 1) - 1
    for index in reversed(range(len(nodes))):
        place = names.place(nodes[index].metadata_props.get(names.module_key, ""))
        if place is not None and place[0] == wanted:
            return index + 1
    raise RefusedError(f"no node of the graph tells that it is {names.stack.layer(wanted)}'s")


class _Comparison:
    """One walk over both repetitions."""

    def __init__(self, found: Match, names: Names, last: Twins, before: list[ir.Node]) -> None:
        self.found, self.names, self.last = found, names, last
        self.second = _places(found.nodes)
        self.third = _places(found.last)
        self.earlier = {value for node in before for value in node.outputs}
        self.distance = names.stack.start(names.stack.repeats - 1) - names.stack.start(1)
        self.returned: dict[Place, ir.Value] = {}
        self.shared: set[ir.Value] = set()

    def run(self) -> None:
        for one, other in zip(self.found.nodes, self.found.last, strict=True):
            self.node(one, other, {})
            for value, twin in zip(one.outputs, other.outputs, strict=True):
                self.output(value, twin, one)
        if self.shared.intersection(self.found.carried):
            raise RefusedError("what the first layers compute is read by the next one and by all that follow")

    def output(self, value: ir.Value, twin: ir.Value, node: ir.Node) -> None:
        if not value.is_graph_output():
            if twin.is_graph_output() and twin.name in self.last.outputs.values():
                self.refuse(node, "its twin is a state and it is not")
            return
        if not twin.is_graph_output() or self.last.outputs.get(str(value.name)) != twin.name:
            self.refuse(node, f"{value.name} has no twin")
        self.found.outputs.add(value)

    def node(self, one: ir.Node, other: ir.Node, bodies: dict[ir.Value, ir.Value]) -> None:
        """Two nodes; ``bodies`` are the values of bodies of control flow around them, by their twins."""
        kind = (one.domain, one.op_type, one.overload, one.version, len(one.inputs), len(one.outputs))
        if kind != (other.domain, other.op_type, other.overload, other.version, len(other.inputs), len(other.outputs)):
            self.refuse(one, f"its twin is {other.op_type}")
        if not self.alike(*(n.metadata_props.get(self.names.module_key, "") for n in (one, other))):
            self.refuse(one, "its twin is of another module")
        for value, twin in zip(one.inputs, other.inputs, strict=True):
            self.value(value, twin, one, bodies)
        if list(one.attributes) != list(other.attributes):
            self.refuse(one, "its twin has other attributes")
        for attribute in one.attributes.values():
            self.attribute(attribute, other.attributes[attribute.name], one, bodies)

    def alike(self, name: str, twin: str) -> bool:
        """Two names of modules or weights: equal, or of the same part of both repetitions."""
        if self.names.place(name) is None:
            return name == twin
        return self.inside(name) and self.names.moved(name, self.distance) == twin

    def inside(self, name: str) -> bool:
        place = self.names.place(name)
        start = self.names.stack.start(1)
        return place is not None and start <= place[0] < start + self.names.stack.period

    def value(
        self, value: ir.Value | None, twin: ir.Value | None, node: ir.Node, bodies: dict[ir.Value, ir.Value]
    ) -> None:
        if value is None or twin is None:
            if value is not twin:
                self.refuse(node, "its twin has another number of inputs")
        elif twin in bodies or value in self.second or twin in self.third:
            if bodies.get(twin, value) is not value or self.second.get(value) != self.third.get(twin):
                self.refuse(node, "its twin reads another value")
        elif twin in self.second:
            place = self.second[twin]
            known = self.found.carried.setdefault(value, place), self.returned.setdefault(place, value)
            if value not in self.earlier or known != (place, value):
                self.refuse(node, "its twin reads another value of the layer before")
        elif value.is_graph_input() and str(value.name) in self.last.inputs:
            if self.last.inputs[str(value.name)] != twin.name:
                self.refuse(node, f"its twin reads {twin.name} for {value.name}")
            self.found.inputs.add(value)
        elif value.name in self.names.weights and self.names.place(str(value.name)) is not None:
            alike = self.alike(str(value.name), str(twin.name)) and (value.dtype, value.shape) == (
                twin.dtype,
                twin.shape,
            )
            if not alike or twin.name not in self.names.weights:
                self.refuse(node, f"its twin reads {twin.name} for {value.name}")
            self.found.weights.add(value)
        elif value is not twin:
            self.refuse(node, "its twin reads another constant or another value from before")
        else:
            self.shared.add(value)

    def attribute(self, one: ir.Attr, other: ir.Attr, node: ir.Node, bodies: dict[ir.Value, ir.Value]) -> None:
        if one.type != other.type or one.is_ref() or other.is_ref():
            self.refuse(node, f"its twin's {one.name} is another")
        elif one.type == ir.AttributeType.GRAPH:
            self.body(one.as_graph(), other.as_graph(), node, bodies)
        elif one.type == ir.AttributeType.TENSOR:
            left, right = one.as_tensor(), other.as_tensor()
            if (left.dtype, left.shape, left.tobytes()) != (right.dtype, right.shape, right.tobytes()):
                self.refuse(node, f"its twin's {one.name} is another")
        elif one.value != other.value:
            self.refuse(node, f"its twin's {one.name} is another")

    def body(self, one: ir.Graph, other: ir.Graph, node: ir.Node, bodies: dict[ir.Value, ir.Value]) -> None:
        sizes = [(len(graph.inputs), len(graph.outputs), len(graph), len(graph.initializers)) for graph in (one, other)]
        if sizes[0] != sizes[1] or sizes[0][3]:
            self.refuse(node, "its twin's body is another")
        inner = bodies | dict(zip(other.inputs, one.inputs, strict=True))
        for left, right in zip(one, other, strict=True):
            self.node(left, right, inner)
            inner |= dict(zip(right.outputs, left.outputs, strict=True))
        for left_output, right_output in zip(one.outputs, other.outputs, strict=True):
            self.value(left_output, right_output, node, inner)

    def refuse(self, node: ir.Node, why: str) -> None:
        path = node.metadata_props.get(self.names.module_key, "")
        raise RefusedError(
            f"{node.op_type} in {path or 'no module'} differs between layers that should be equal: {why}"
        )


def _places(nodes: list[ir.Node]) -> dict[ir.Value, Place]:
    return {value: (index, place) for index, node in enumerate(nodes) for place, value in enumerate(node.outputs)}


def _refuse_other_users(found: Match, behind: list[ir.Node]) -> None:
    """What the second repetition computes may reach itself, the next one and its state, and nothing else."""
    made = set(_places(found.nodes))
    for node in behind:
        if any(value in made for value in read(node)):
            raise RefusedError(f"{node.op_type} behind the layers reads what one within them computes")


def read(node: ir.Node) -> Iterator[ir.Value | None]:
    """What a node and the nodes of its bodies read."""
    yield from node.inputs
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield from attribute.as_graph().outputs
            for inner in attribute.as_graph():
                yield from read(inner)


Replace = Callable[[ir.Value], ir.Value]


def redirect(node: ir.Node, replaced: Replace) -> None:
    """Give a node, and the nodes of its bodies, other inputs."""
    for index, value in enumerate(node.inputs):
        if value is not None and replaced(value) is not value:
            node.replace_input_with(index, replaced(value))
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            body = attribute.as_graph()
            for inner in body:
                redirect(inner, replaced)
            for index, value in enumerate(body.outputs):
                if replaced(value) is not value:
                    body.outputs[index] = replaced(value)
