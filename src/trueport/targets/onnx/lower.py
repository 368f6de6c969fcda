"""From a captured program to an ONNX graph under the interface's names."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.capture import Captured
from trueport.errors import LoweringError, SpecializationError
from trueport.graphs.shapes import forget_shapes
from trueport.interface import Interface
from trueport.targets.onnx.decompose import spared_retracing
from trueport.targets.onnx.translations import translations

if TYPE_CHECKING:
    import torch

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
    """Convert, name, optimise.

    Args:
        captured: the program.
        opset: of the graph.
        origins: keep what torch notes of where each operation comes from, paths of this machine included.

    Raises:
        LoweringError: an operator has no ONNX form; the message names it and its source line.
        SpecializationError: an input lost a dynamic axis on the way.
    """
    from trueport.graphs.optimize import optimize
    from trueport.graphs.widen import double_transforms, widen_bfloat16

    model = _convert(captured, opset)
    _place_weights(model, captured)
    _name_values(model, captured.interface)
    weights = _name_weights(model)
    optimize(model, weights)
    widen_bfloat16(model)
    double_transforms(model)
    if not origins:
        _strip(model)
    _name_axes(model, captured.interface)
    _refuse_constants(model, captured)
    return Graph(captured.name, captured.stem, model, captured.interface, captured.guards, frozenset(weights))


def _convert(captured: Captured, opset: int) -> ir.Model:
    import torch

    quiet = io.StringIO()
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(quiet), warnings.catch_warnings(), spared_retracing(captured.program):
            warnings.simplefilter("ignore")
            program: torch.onnx.ONNXProgram | None = torch.onnx.export(
                captured.program,
                dynamo=True,
                optimize=False,
                opset_version=opset,
                verbose=False,
                custom_translation_table=translations(),
            )
    except Exception as error:
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
        raise LoweringError(
            f"{captured.name}: no ONNX form at opset {opset}: {type(cause).__name__}: {' '.join(lines[:3])}"
        ) from error
    finally:
        logger.setLevel(level)
    assert program is not None
    return program.model


def _place_weights(model: ir.Model, captured: Captured) -> None:
    """Give the parameters without memory their places in the checkpoint.

    One that the checkpoint holds in a narrower float dtype is widened in the graph, which is exact: the runtime folds
    the cast when it loads, and no byte is written.
    """
    from trueport.targets.onnx.weights import WeightTensor

    first = next(iter(model.graph), None)
    for value in list(model.graph.initializers.values()):
        origin = captured.origins.get(value.name or "")
        if origin is None:
            continue
        narrow = origin.unwidened if origin.span is None else None
        tensor = WeightTensor(value.name or "", origin if narrow is None else narrow)
        if narrow is not None:
            cast = ir.node("Cast", [value], {"to": ir.AttrInt64("to", ir.DataType.FLOAT.value)})
            cast.outputs[0].type, cast.outputs[0].shape = value.type, value.shape
            cast.outputs[0].name = f"{value.name}_widened"
            value.replace_all_uses_with(cast.outputs[0])
            cast.replace_input_with(0, value)
            value.type = ir.TensorType(tensor.dtype)
            assert first is not None
            model.graph.insert_before(first, cast)
        value.const_value = tensor


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
            name = name.removeprefix("inner.").removeprefix("model.")
            while name in graph.initializers:
                name = f"shared.{name}"
            value.name = name
            names.add(name)
    return names


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


MODULE_KEY = "trueport.module"
"""Metadata key of a node's module path; all else that torch notes holds paths of this machine."""


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


def module_path(scopes: str) -> str:
    """The innermost module of torch's list of scopes, whose last entry is the operation itself."""
    names = ast.literal_eval(scopes) if scopes.startswith("[") else []
    path = names[-2] if len(names) > 1 else ""
    return path.removeprefix("inner.").removeprefix("model.") if path.startswith("inner.") else ""
