"""Quantised graphs: products of activations and weights in few bits, all else as it was.

Only a product's own node, and the transposes and casts of its weight, are replaced: what makes masks and positions,
softmax, norms, products of two activations and embeddings are the very nodes of the float graph.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trueport.errors import LoweringError
from trueport.targets.onnx.blocks import SIZES, Blocks, in_blocks, in_columns, size_of
from trueport.targets.onnx.layers import Layer, layers_of
from trueport.targets.onnx.lower import Graph
from trueport.targets.quantized import Gate

DOMAIN = "com.microsoft"
PRODUCTS = frozenset({"MatMulNBits", "MatMulIntegerToFloat"})
"""Its operators that multiply by weights in few bits."""
ACCURACY = 4
"""``accuracy_level`` of MatMulNBits: activations in int8, a scale for each block of each row. At level 0 the kernel
multiplies in float32, which at 8 bits is ten times slower than no quantisation at all."""
BITS = {"int8": (8, 64), "int4": (4, 32)}
"""Bits of a weight, and the most weights that share a scale where nothing else is asked for. From blocks of 64 with 4
bits and of 128 with 8 on, ONNX Runtime sums a single row in another order than several (measured, docs/quantisation.md):
the next layer may round an activation otherwise, and a row in a batch be not quite the row alone."""
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
Weight = tuple[str, tuple[str, bool]]
"""A graph's name and a ``Layer.key``."""
FormOf = Callable[[Place], str]
"""The form of a layer: one of BITS, STATIC or FLOAT."""


def check_options(kind: str, block_size: int | None = None) -> None:
    """Refuse an unknown kind, and a size of blocks that none has.

    Raises:
        LoweringError: with what to give instead.
    """
    if kind not in GATES:
        raise LoweringError(
            f"There is no quantisation {kind} for the target onnx",
            f"Choose from {', '.join(GATES)}, or give --to executorch for its kinds.",
        )
    if block_size is not None and kind == STATIC:
        raise LoweringError(f"--quantize {kind} has no blocks", "Leave --block-size out.")
    if block_size is not None and block_size not in SIZES:
        raise LoweringError(f"There are no blocks of {block_size}", f"Give --block-size {', '.join(map(str, SIZES))}.")


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


def quantised_layers(path: Path) -> Counter[str]:
    """Layers that multiply by weights in few bits in a graph's file, by form, bodies of control flow included; of a product
    that is cut, its parts.
    """
    import onnx

    found: Counter[str] = Counter()
    widths = {bits: form for form, (bits, _) in BITS.items()}
    bodies = [onnx.load(path, load_external_data=False).graph]
    while bodies:
        nodes = bodies.pop().node
        parts = {node.input[0]: len(node.output) for node in nodes if node.op_type == "Split"}
        shaped = {node.input[0]: node.output[0] for node in nodes if node.op_type == "Reshape"}
        for node in nodes:
            if node.domain == DOMAIN and node.op_type in PRODUCTS:
                bits = next((attribute.i for attribute in node.attribute if attribute.name == "bits"), 4)
                form = STATIC if node.op_type == "MatMulIntegerToFloat" else widths.get(bits, f"{bits} bits")
                found[form] += parts.get(node.output[0]) or parts.get(shaped.get(node.output[0], ""), 1)
            bodies += [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found


def quantise(
    graph: Graph,
    form_of: FormOf,
    ranges: Mapping[Place, Range] | None = None,
    block_size: int | None = None,
    rounded: Mapping[Weight, Blocks] | None = None,
) -> None:
    """Replace the products of a graph, in place, each by the form that ``form_of`` names.

    Args:
        graph: in float32.
        form_of: by place.
        ranges: of the activations of each layer whose form is STATIC.
        block_size: the most weights that share a scale; by form where None.
        rounded: four-bit weights that were rounded already; the others are rounded to the nearest.
    """
    from onnx_ir.passes import common as passes

    made: dict[Any, list[ir.Value]] = {}
    for form, layers in _together(graph, form_of):
        first = layers[0]
        key = (tuple(layer.key for layer in layers), form)
        if key not in made:
            made[key] = _weights(graph, layers, form, block_size, rounded or {})
        if form == STATIC:
            nodes = _static(graph, first, made[key], (ranges or {})[graph.name, first.path])
            results = nodes[-1].outputs
        else:
            nodes, results = _blockwise(graph, layers, made[key], form, block_size)
        for node in nodes:
            node.metadata_props.update(first.node.metadata_props)
        owner = first.node.graph
        assert owner is not None
        owner.insert_before(first.node, nodes)
        for layer, new in zip(layers, results, strict=True):
            old = layer.node.outputs[0]
            new.type, new.shape, new.name = old.type, old.shape, old.name
            old.name = f"{old.name}_in_float"
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            owner.remove(layer.node, safe=True)
    graph.model.opset_imports[DOMAIN] = 1
    passes.RemoveUnusedNodesPass()(graph.model)


def bits_and_size(form: str, width: int, block_size: int | None) -> tuple[int, int]:
    """Bits of a weight and weights of a block, of a matrix this wide in one of the forms of BITS."""
    bits, most = BITS[form]
    return bits, size_of(width, bits, block_size or most)


def blocks_of(graph: str, layer: Layer, form: str, block_size: int | None, rounded: Mapping[Weight, Blocks]) -> Blocks:
    """A layer's weights in one of the forms of BITS."""
    bits, size = bits_and_size(form, layer.width, block_size)
    found = rounded.get((graph, layer.key)) if bits == 4 else None
    return in_blocks(layer.matrix(), bits, size) if found is None else found


def _together(graph: Graph, form_of: FormOf) -> list[tuple[str, list[Layer]]]:
    """The layers that leave float, by form: those that multiply the same activations in blocks are one product.

    Each output is computed from its own blocks, so one product gives what several do, bit for bit. Rounding the
    activations and calling the threads together is done once. A matrix that several products share stays by itself, and
    is stored once.
    """
    layers = layers_of(graph)[0]
    uses = Counter(layer.key for layer in layers)
    found: dict[Any, tuple[str, list[Layer]]] = {}
    for layer in layers:
        form = form_of((graph.name, layer.path))
        if form == FLOAT:
            continue
        alone = layer.node if form == STATIC or uses[layer.key] > 1 else None
        key = (form, layer.node.inputs[0], layer.node.graph, layer.bias is None, alone)
        found.setdefault(key, (form, []))[1].append(layer)
    return list(found.values())


def _weights(
    graph: Graph, layers: Sequence[Layer], form: str, block_size: int | None, rounded: Mapping[Weight, Blocks]
) -> list[ir.Value]:
    """The initializers of one product's weight."""
    name = "+".join(str(layer.weight.name) for layer in layers)
    if form == STATIC:
        columns = in_columns(layers[0].matrix())
        return [constant(graph, f"{name}_int8", columns.values), constant(graph, f"{name}_scales", columns.scales)]
    blocks = [blocks_of(graph.name, layer, form, block_size, rounded) for layer in layers]
    parts = {form: [b.packed for b in blocks], "scales": [b.scales for b in blocks]}
    zeros = [b.zeros for b in blocks if b.zeros is not None]
    parts |= {"zeros": zeros} if zeros else {}
    return [constant(graph, f"{name}_{part}", np.concatenate(arrays)) for part, arrays in parts.items()]


def _blockwise(
    graph: Graph, layers: Sequence[Layer], weights: Sequence[ir.Value], form: str, block_size: int | None
) -> tuple[list[ir.Node], Sequence[ir.Value]]:
    """``MatMulNBits``: activations (.., width) to (.., outputs), cut into the layers' own outputs; and these."""
    outputs, first = [_sizes(layer)[0] for layer in layers], layers[0]
    width = _sizes(first)[1]
    bits, size = bits_and_size(form, width, block_size)
    inputs: list[ir.Value | None] = [first.node.inputs[0], *weights]
    if first.bias is not None:
        inputs += [None] * (5 - len(inputs)) + [_bias(graph, layers)]
    numbers = {"K": width, "N": sum(outputs), "bits": bits, "block_size": size, "accuracy_level": ACCURACY}
    product = ir.node("MatMulNBits", inputs, numbers, domain=DOMAIN)
    if len(layers) == 1:
        return [product], product.outputs
    name = str(first.node.outputs[0].name)
    product.outputs[0].name = f"{name}_and_others"
    sizes = constant(graph, f"{name}_sizes", np.array(outputs))
    cut = ir.node("Split", [product.outputs[0], sizes], {"axis": -1}, num_outputs=len(outputs))
    return [product, cut], cut.outputs


def _bias(graph: Graph, layers: Sequence[Layer]) -> ir.Value:
    """What the layers add, one behind the other."""
    values: list[Any] = [layer.bias for layer in layers]
    if len(values) == 1:
        return values[0]
    joined = np.concatenate([value.const_value.numpy() for value in values])
    return constant(graph, "+".join(str(value.name) for value in values), joined)


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
    """A new initializer; a name that is taken, as by a matrix that is read both ways, gets a number."""
    known, stem, count = graph.model.graph.initializers, name, 1
    while name in known:
        name, count = f"{stem}_{count}", count + 1
    tensor = ir.tensor(np.asarray(array), name=name)
    value = ir.Value(
        name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.numpy().shape), const_value=tensor
    )
    graph.model.graph.register_initializer(value)
    return value
