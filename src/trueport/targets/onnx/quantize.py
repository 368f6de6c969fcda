"""Quantised graphs: products of activations and weights in few bits, all else as it was.

Only a product's own node, and the transposes and casts of its weight, are replaced: what makes masks and positions,
softmax, norms, products of two activations and embeddings are the very nodes of the float graph.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from trueport.errors import LoweringError
from trueport.targets.onnx.blocks import in_blocks, in_columns
from trueport.targets.onnx.layers import Layer, layers_of
from trueport.targets.onnx.lower import Graph
from trueport.targets.quantized import Gate

DOMAIN = "com.microsoft"
ACCURACY = 4
"""``accuracy_level`` of MatMulNBits: activations in int8, a scale for each block of each row. At level 0 the kernel
multiplies in float32, which at 8 bits is ten times slower than no quantisation at all."""
BITS = {"int8": (8, 64), "int4": (4, 32)}
"""Bits of a weight and weights of a block. At blocks of 64 with 4 bits, and of 128 with 8, ONNX Runtime rounds the
activations of a single row and of several in different ways (measured, docs/quantisation.md): a step of the cache would
then not equal the whole, nor a row in a batch the row alone."""
STATIC, FLOAT = "int8-static", "float"
"""The forms of a layer besides those of BITS."""
GATES = {
    "int8": Gate(0.90, 0.02, 0.10, 0.90, "8 bits move a choice only between near ties, of which drawn tokens make many"),
    "int8-static": Gate(0.85, 0.05, 0.15, 0.85, "one scale for all tokens costs about a bit more than a scale for each"),
    "int4": Gate(0.85, 0.15, 0.25, 0.85, "4 bits are 16 steps: a token in seven may move where several were as likely"),
    "auto": Gate(0.85, 0.15, 0.25, 0.85, "it begins with int4, and spends bytes until int4's gate holds"),
}  # fmt: skip
"""The gate of each kind."""
Range = tuple[float, float]
"""Smallest and largest value of a layer's activations."""
Place = tuple[str, str]
"""A graph's name and a layer's path."""
FormOf = Callable[[Place], str]
"""The form of a layer: one of BITS, STATIC or FLOAT."""


def check_options(kind: str, calibrated: bool) -> None:
    """Refuse an unknown kind, and inputs to calibrate on for one that is not calibrated.

    Raises:
        LoweringError: with what to give instead.
    """
    if kind not in GATES:
        raise LoweringError(
            f"There is no quantisation {kind} for the target onnx",
            f"Choose from {', '.join(GATES)}, or give --to executorch for its kinds.",
        )
    if calibrated and kind != STATIC:
        raise LoweringError(f"--quantize {kind} is not calibrated", f"Leave --calibration out, or give {STATIC}.")


def check_graphs(graphs: Sequence[Graph], kind: str) -> None:
    """Refuse graphs in which there is nothing to quantise, or which are not in float32.

    Raises:
        LoweringError: it says why.
    """
    tensors = [tensor for graph in graphs for tensor in (*graph.interface.inputs, *graph.interface.outputs)]
    dtypes = sorted({tensor.dtype for tensor in tensors if "float" in tensor.dtype} - {"float32"})
    if dtypes:
        raise LoweringError(f"--quantize {kind} starts from float32, not {', '.join(dtypes)}", "Give --dtype float32.")
    found = [layers_of(graph) for graph in graphs]
    if not any(layers for layers, _ in found):
        why = next((why for _, left in found for why in left.values()), "it has no linear layer")
        raise LoweringError(f"--quantize {kind} fits no layer: {why}", "Leave it out.")


def quantise(graph: Graph, form_of: FormOf, ranges: Mapping[Place, Range] | None = None) -> None:
    """Replace the products of a graph, in place, each by the form that ``form_of`` names.

    Args:
        graph: in float32.
        form_of: by place.
        ranges: of the activations of each layer whose form is STATIC.
    """
    from onnx_ir.passes import common as passes

    made: dict[Any, list[ir.Value]] = {}
    for layer in layers_of(graph)[0]:
        place = (graph.name, layer.path)
        form = form_of(place)
        if form == FLOAT:
            continue
        key = (layer.key, form)
        if key not in made:
            made[key] = _weights(graph, layer, form)
        nodes = (
            _static(graph, layer, made[key], (ranges or {})[place])
            if form == STATIC
            else _blockwise(layer, made[key], form)
        )
        for node in nodes:
            node.metadata_props.update(layer.node.metadata_props)
        owner = layer.node.graph
        assert owner is not None
        old, new = layer.node.outputs[0], nodes[-1].outputs[0]
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_nodes_and_values(owner, layer.node, [layer.node], nodes, [old], [new])
    graph.model.opset_imports[DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(graph.model)


def _weights(graph: Graph, layer: Layer, form: str) -> list[ir.Value]:
    """The initializers of a layer's weight."""
    name = str(layer.weight.name)
    if form == STATIC:
        columns = in_columns(layer.matrix())
        return [constant(graph, f"{name}_int8", columns.values), constant(graph, f"{name}_scales", columns.scales)]
    blocks = in_blocks(layer.matrix(), *BITS[form])
    parts = {form: blocks.packed, "scales": blocks.scales, "zeros": blocks.zeros}
    return [constant(graph, f"{name}_{part}", array) for part, array in parts.items() if array is not None]


def _blockwise(layer: Layer, weights: Sequence[ir.Value], form: str) -> list[ir.Node]:
    """``MatMulNBits``: activations (.., width) to (.., outputs)."""
    bits, size = BITS[form]
    outputs, width = _sizes(layer)
    inputs: list[ir.Value | None] = [layer.node.inputs[0], *weights]
    if layer.bias is not None:
        inputs += [None] * (5 - len(inputs)) + [layer.bias]
    numbers = {"K": width, "N": outputs, "bits": bits, "block_size": size, "accuracy_level": ACCURACY}
    return [ir.node("MatMulNBits", inputs, numbers, domain=DOMAIN)]


def _static(graph: Graph, layer: Layer, weights: Sequence[ir.Value], found: Range) -> list[ir.Node]:
    """``QuantizeLinear`` with a fixed scale, and a product of integers that gives floats."""
    low, high = min(found[0], 0.0), max(found[1], 0.0)
    size = (high - low) / 255 or 1.0
    scale = constant(graph, f"{weights[0].name}_scale_{layer.node.name}", np.float32(size))
    zero = constant(graph, f"{weights[0].name}_zero_{layer.node.name}", np.uint8(round(-low / size)))
    rounded = ir.node("QuantizeLinear", [layer.node.inputs[0], scale, zero])
    inputs: list[ir.Value | None] = [rounded.outputs[0], weights[0], scale, weights[1], zero]
    if layer.bias is not None:
        inputs += [None, layer.bias]
    return [rounded, ir.node("MatMulIntegerToFloat", inputs, domain=DOMAIN)]


def _sizes(layer: Layer) -> tuple[int, int]:
    """Outputs and width of a layer."""
    first, second = (int(size) for size in layer.weight.shape.numpy())  # type: ignore[union-attr]
    return (first, second) if layer.flipped else (second, first)


def constant(graph: Graph, name: str, array: np.ndarray | np.generic) -> ir.Value:
    """A new initializer."""
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.numpy().shape), const_value=tensor
    )
    graph.model.graph.register_initializer(value)
    return value
