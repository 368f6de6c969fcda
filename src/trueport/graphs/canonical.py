"""One form of a graph, however it came about: where sizes are read, and in which order and by which names things stand."""

from __future__ import annotations

import onnx_ir as ir

from trueport.graphs.stamping.match import read
from trueport.interface import Interface, terms


def read_sizes_once(model: ir.Model, interface: Interface) -> None:
    """Read each dimension from the first input that has it.

    torch knows that axes are equal and takes the length of any of them, another one in a model of more layers.
    """
    graph = model.graph
    places: dict[str, tuple[ir.Value, int]] = {}
    names: dict[ir.Value, tuple[int | str, ...]] = {}
    for value, tensor in zip(graph.inputs, interface.inputs, strict=True):
        names[value] = tensor.shape
        for axis, name in enumerate(tensor.shape):
            if len(terms(name)) == 1:
                places.setdefault(str(name), (value, axis))
    first = next(iter(graph), None)
    if first is None:
        return
    shapes, scalars = dict[str, ir.Value](), dict[str, ir.Value]()
    for name, (value, axis) in places.items():
        shape = ir.node("Shape", [value], {"start": axis, "end": axis + 1})
        scalar = ir.node("Squeeze", [shape.outputs[0]])
        for made, size in ((shape, [1]), (scalar, [])):
            made.outputs[0].type, made.outputs[0].shape = ir.TensorType(ir.DataType.INT64), ir.Shape(size)
        graph.insert_before(first, [shape, scalar])
        shapes[name], scalars[name] = shape.outputs[0], scalar.outputs[0]
    own = {id(value.producer()) for value in (*shapes.values(), *scalars.values())}
    for node in graph:
        if node.op_type == "Shape" and id(node) not in own and node.inputs[0] in names:
            start, end = (node.attributes.get_int(key, -1) for key in ("start", "end"))
            axes = names[node.inputs[0]]
            axis_name = str(axes[start]) if 0 <= start == end - 1 < len(axes) else ""
            if axis_name in shapes:
                _read_from(node, shapes[axis_name], scalars[axis_name])


def _read_from(node: ir.Node, shape: ir.Value, scalar: ir.Value) -> None:
    """Give the users of a size the one that is read anew."""
    for user, _ in list(node.outputs[0].uses()):
        if user.op_type == "Squeeze" and not user.outputs[0].is_graph_output():
            user.outputs[0].replace_all_uses_with(scalar)
    node.outputs[0].replace_all_uses_with(shape)


def settle(model: ir.Model, weights: frozenset[str] | set[str]) -> None:
    """Number nodes and values in their order, and put the initializers in the order in which they are used."""
    graph = model.graph
    _lead_with_constants(graph)
    used: dict[ir.Value, None] = {}
    taken = {str(value.name) for value in (*graph.inputs, *graph.outputs)} | set(weights)
    nodes = list(ir.traversal.RecursiveGraphIterator(graph))
    for node in nodes:
        used.update((value, None) for value in node.inputs if value is not None and value.is_initializer())
    initializers = list(graph.initializers.values())
    used.update((value, None) for value in initializers)
    graph.initializers.clear()
    constants = 0
    for value in used:
        if value.name not in weights and not value.is_graph_output():
            value.name = _free(f"constant_{constants}", taken)
            constants += 1
        graph.initializers.add(value)
    bodies = 0
    for number, node in enumerate(nodes):
        node.name = f"{node.op_type}_{number}"
        for place, value in enumerate(node.outputs):
            if not (value.is_graph_output() and value.name in taken):
                value.name = _free(f"{node.op_type}_{number}" + (f".{place}" if place else ""), taken)
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                body = attribute.as_graph()
                body.name, bodies = f"body_{bodies}", bodies + 1
                for place, value in enumerate(body.inputs):
                    value.name = _free(f"{body.name}.{place}", taken)
                    value.metadata_props.clear()


def _lead_with_constants(graph: ir.Graph) -> None:
    """Move what is computed of constants alone, such as weights that are widened, to the front, in its order.

    ONNX Runtime walks back from the outputs, and of a node's operands it computes those first that stand last in the
    file: a weight that was cast in front of its product would be cast before the first layer ran, and all of them be
    held until then. What stands in front of all else is computed just before it is read.
    """
    constant = set(graph.initializers.values())
    leading, others = list[ir.Node](), list[ir.Node]()
    for node in graph:
        operands = {value for value in read(node) if value is not None}
        if operands and operands <= constant:
            constant.update(node.outputs)
            leading.append(node)
        else:
            others.append(node)
    if leading and others:
        graph.insert_before(others[0], leading)


def _free(name: str, taken: set[str]) -> str:
    """A name that nothing else has."""
    while name in taken:
        name = f"_{name}"
    return name
