"""From a captured program to an ONNX graph under the interface's names."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.capture import Captured
from trueport.errors import LoweringError, SpecializationError
from trueport.graphs.origin import MODULE_KEY, module_path
from trueport.graphs.shapes import forget_shapes
from trueport.graphs.stamping import RefusedError
from trueport.graphs.stamping.match import read
from trueport.interface import Interface
from trueport.quiet import quiet, silent
from trueport.targets.onnx.passes import spared_passes
from trueport.targets.onnx.translations import translations
from trueport.weights.linked import origin_of

if TYPE_CHECKING:
    import torch

    from trueport.graphs.stamping.shorten import Stamping
    from trueport.targets.onnx.weights import WeightTensor
    from trueport.weights.lazy import LazyTensor

DEFAULT_OPSET = 23
"""The first opset with ``Attention``, whose masks ONNX Runtime gets right on every row."""


@dataclass(frozen=True)
class Graph:
    """An ONNX model of one component, its weights still in memory; ``weights`` are the names of the model's own."""

    name: str
    stem: str
    model: ir.Model
    interface: Interface
    guards: tuple[int, ...] = ()
    weights: frozenset[str] = frozenset()


def lower(captured: Captured, *, opset: int = DEFAULT_OPSET, origins: bool = False) -> Graph:
    """Convert, name, optimise; where layers were left out of the program, stamp them into the graph.

    Args:
        captured: the program.
        opset: of the graph.
        origins: keep what torch notes of where each operation comes from, paths of this machine included.

    Raises:
        LoweringError: an operator has no ONNX form; the message names it and its source line.
        SpecializationError: an input lost a dynamic axis on the way.
    """
    from trueport.graphs.canonical import settle

    stamping = captured.stamping
    if stamping is not None:
        try:
            graph = _lowered(captured, opset, origins)
            graph = _stamped(graph, captured, stamping)
        except RefusedError as refused:
            return lower(stamping.plainly(str(refused)), opset=opset, origins=origins)
    else:
        graph = _lowered(captured, opset, origins)
    if not origins:  # whose names are the program's
        settle(graph.model, graph.weights)
    _name_axes(graph.model, graph.interface)
    _refuse_constants(graph.model, captured)
    return graph


def _lowered(captured: Captured, opset: int, origins: bool) -> Graph:
    """The graph of the program itself."""
    from trueport.graphs.canonical import read_sizes_once
    from trueport.graphs.integers import compare_exactly
    from trueport.graphs.optimize import optimize
    from trueport.graphs.widen import double_transforms, widen_bfloat16
    from trueport.graphs.zeros import keep_zero_lengths

    model = _convert(captured, opset)
    _place_weights(model, captured)
    _name_values(model, captured.interface)
    weights = _name_weights(model)
    read_sizes_once(model, captured.interface)
    optimize(model, weights)
    widen_bfloat16(model)
    double_transforms(model)
    compare_exactly(model)
    keep_zero_lengths(model)
    if not origins:
        _strip(model)
    return Graph(captured.name, captured.stem, model, captured.interface, captured.guards, frozenset(weights))


def _stamped(graph: Graph, captured: Captured, stamping: Stamping) -> Graph:
    """The graph with the layers that the program lacks."""
    from trueport.graphs.stamping.match import Names
    from trueport.graphs.stamping.stamp import stamp

    interface = stamping.interface(captured.interface)
    names = Names(stamping.stack, graph.weights, MODULE_KEY)
    module = stamping.component.module
    tensors = {
        _own_name(f"inner.{name}"): (f"inner.{name}", tensor)
        for name, tensor in (
            *module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False),
        )
    }  # fmt: skip

    def weight_of(name: str, twin: ir.Value) -> ir.TensorProtocol:
        """A left-out layer's weight; its place in the checkpoint where its values lie there."""
        if name not in tensors or twin.const_value is None:
            raise RefusedError(f"the model has no {name}")
        parameter, values = tensors[name]
        origin = origin_of(values)
        tensor = placed(parameter, origin) if origin is not None else _in_memory(name, values)
        if (tensor.dtype, tensor.shape) != (twin.const_value.dtype, twin.const_value.shape):
            raise RefusedError(f"{name} is not stored as {twin.name} is")
        return tensor

    inputs, outputs = ([tensor.name for tensor in part] for part in (interface.inputs, interface.outputs))
    added = stamp(graph.model.graph, names, stamping.twins, inputs, outputs, weight_of)
    return replace(graph, interface=interface, weights=graph.weights | added)


def _in_memory(name: str, tensor: torch.Tensor) -> ir.TensorProtocol:
    return ir.tensor_adapters.TorchTensor(tensor.detach().contiguous(), name=name)


def _convert(captured: Captured, opset: int) -> ir.Model:
    import torch

    try:
        with quiet(), silent("stdout"), spared_passes():
            program: torch.onnx.ONNXProgram | None = torch.onnx.export(
                captured.program,
                dynamo=True,
                optimize=False,
                opset_version=opset,
                verbose=False,
                custom_translation_table=translations(),
            )
    except Exception as error:
        raise _refusal(captured, opset, error) from error
    assert program is not None
    return program.model


def _refusal(captured: Captured, opset: int, error: Exception) -> LoweringError:
    """The operators that ONNX lacks, with their lines and what to write there; else what torch.onnx says."""
    from trueport.diagnosis.operators import lacking

    with suppress(Exception), quiet():
        found = lacking(captured.program, "onnx")
        if found:
            words = "; ".join(f"{one.problem} at {one.where}" if one.where else one.problem for one in found)
            return LoweringError(f"{captured.name}: {words}", " ".join(dict.fromkeys(one.mend for one in found)))
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return LoweringError(
        f"{captured.name}: no ONNX form at opset {opset}: {type(cause).__name__}: {' '.join(lines[:3])}"
    )


def _place_weights(model: ir.Model, captured: Captured) -> None:
    """Give the parameters without memory their places in the checkpoint.

    One that the checkpoint holds in a narrower float dtype is widened in the graph, which is exact: the runtime folds
    the cast when it loads, and no byte is written.
    """
    wide: dict[ir.Value, ir.DataType] = {}
    for value in list(model.graph.initializers.values()):
        origin = captured.origins.get(value.name or "")
        if origin is None:
            continue
        tensor = placed(value.name or "", origin)
        value.const_value = tensor
        if value.type != ir.TensorType(tensor.dtype):
            wide[value] = tensor.dtype
    users = {value: node for node in reversed(list(model.graph)) for value in read(node)} if wide else {}
    for value, dtype in wide.items():
        if value not in users:
            continue
        cast = _widened(value, dtype)
        # Before its first user, whose module it belongs to.
        cast.metadata_props.update(users[value].metadata_props)
        model.graph.insert_before(users[value], cast)
        _widen_rows(cast)


def _widened(value: ir.Value, dtype: ir.DataType) -> ir.Node:
    """A cast of ``value``, which is of ``dtype`` from now on, for all its users; not yet in the graph."""
    cast = ir.node("Cast", [value], {"to": ir.AttrInt64("to", ir.DataType.FLOAT.value)})
    cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
    cast.outputs[0].name = f"{value.name}_widened"
    value.replace_all_uses_with(cast.outputs[0])
    cast.replace_input_with(0, value)
    value.type = ir.TensorType(dtype)
    return cast


def _widen_rows(cast: ir.Node) -> None:
    """Where rows are looked up in a widened table, widen them and not the table, mostly the largest of the weights."""
    table = cast.inputs[0]
    if table is None or table.dtype is None or len(table.shape or ()) != 2:
        return
    for node, place in list(cast.outputs[0].uses()):
        rows = node.outputs[0]
        if node.op_type == "Gather" and place == 0 and not rows.is_graph_output():
            node.replace_input_with(0, table)
            behind = _widened(rows, table.dtype)
            behind.metadata_props.update(node.metadata_props)
            node.graph.insert_after(node, behind)  # type: ignore[union-attr]


def placed(parameter: str, origin: LazyTensor) -> WeightTensor:
    """A weight in the checkpoint, in the dtype in which it lies there where a cast is exact.

    Args:
        parameter: its name in the captured module.
        origin: what tells its values.
    """
    from trueport.targets.onnx.weights import WeightTensor

    narrow = origin.unwidened if origin.span is None else None
    return WeightTensor(parameter, origin if narrow is None else narrow)


def _name_values(model: ir.Model, interface: Interface) -> None:
    """Give inputs and outputs the interface's names."""
    graph = model.graph
    for values, tensors in ((graph.inputs, interface.inputs), (graph.outputs, interface.outputs)):
        if len(values) != len(tensors):
            raise LoweringError(f"The graph has {len(values)} values where the interface has {len(tensors)}")
    _separate_outputs(graph)
    for value, tensor in zip(graph.inputs, interface.inputs, strict=True):
        value.name = tensor.name
        _refuse_static(value, tensor.shape)
    for value, tensor in zip(graph.outputs, interface.outputs, strict=True):
        value.name = tensor.name


def _name_axes(model: ir.Model, interface: Interface) -> None:
    """Write the interface's shapes, last of all: shape inference puts its own symbols in their place."""
    for values, tensors in (
        (model.graph.inputs, interface.inputs),
        (model.graph.outputs, interface.outputs),
    ):
        for value, tensor in zip(values, tensors, strict=True):
            value.shape = ir.Shape(tensor.shape)


def _name_weights(model: ir.Model) -> set[str]:
    """Strip the wrappers' prefixes from the names of parameters and buffers; returns the names."""
    graph = model.graph
    names = set()
    for value in list(graph.initializers.values()):
        name = value.name or ""
        if name.startswith("inner."):
            name = _own_name(name)
            while name in graph.initializers:
                name = f"shared.{name}"
            value.name = name
            names.add(name)
    return names


def _own_name(name: str) -> str:
    """A parameter's name in the model, of its name in the captured module."""
    return name.removeprefix("inner.").removeprefix("model.")


def _separate_outputs(graph: ir.Graph) -> None:
    """An input or a value that is given out twice goes through an Identity, so that each name is its own."""
    seen: set[int] = {id(value) for value in graph.inputs} | {id(v) for v in graph.initializers.values()}
    for index, value in enumerate(graph.outputs):
        if id(value) in seen:
            node = ir.node("Identity", [value])
            node.outputs[0].type = value.type
            graph.append(node)
            graph.outputs[index] = node.outputs[0]
        seen.add(id(graph.outputs[index]))


def _refuse_static(value: ir.Value, shape: tuple[int | str, ...]) -> None:
    for axis, (got, wanted) in enumerate(zip(value.shape or (), shape, strict=True)):
        if isinstance(wanted, str) and isinstance(got, int):
            raise SpecializationError(
                f"Axis {axis} ({wanted}) of input {value.name} became the constant {got} in the conversion to ONNX"
            )


def _refuse_constants(model: ir.Model, captured: Captured) -> None:
    """The mask must still reach the graph: an input that nothing reads was dropped on the way."""
    for value in model.graph.inputs:
        if value.name and value.name.endswith("attention_mask") and not value.uses():
            raise SpecializationError(
                f"{captured.name}: {value.name} reaches nothing in the graph",
                "The model takes the mask and does not read it; check its attention implementation.",
            )


def _strip(model: ir.Model) -> None:
    """Drop what differs from machine to machine, and the shapes that every runtime infers again."""
    from trueport import __version__

    model.producer_name, model.producer_version = "trueport", __version__
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        path = module_path(node.metadata_props.get("pkg.torch.onnx.name_scopes", ""))
        node.metadata_props.clear()
        if path:
            node.metadata_props[MODULE_KEY] = path
        node.doc_string = None
    forget_shapes(model)
