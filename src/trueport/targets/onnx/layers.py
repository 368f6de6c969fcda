"""The linear layers of a graph, found by what they compute: activations times a matrix of weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.origin import MODULE_KEY
from trueport.targets.onnx.lower import Graph

PRODUCTS = ("MatMul", "Gemm")
OTHERS = ("Conv", "ConvTranspose", "Einsum", "LSTM", "GRU", "RNN")
"""Operators with matrices of weights that have no quantised form here."""
FLIP = (1, 0)


@dataclass(frozen=True)
class Layer:
    """One product of activations and weights.

    Attributes:
        path: of the module, or the weight's name where no module is known.
        node: the MatMul or Gemm.
        weight: the initializer.
        flipped: whether it is stored (outputs, width), as ``nn.Linear`` does, not (width, outputs).
        bias: what the node adds, (outputs,).
    """

    path: str
    node: ir.Node
    weight: ir.Value
    flipped: bool
    bias: ir.Value | None = None

    @property
    def key(self) -> tuple[str, bool]:
        """Equal for products with the same matrix."""
        return str(self.weight.name), self.flipped

    @property
    def width(self) -> int:
        """Of its activations."""
        return int(self.weight.shape.numpy()[1 if self.flipped else 0])  # type: ignore[union-attr]

    def matrix(self) -> np.ndarray:
        """The weights as float32, (outputs, width); read now."""
        tensor: Any = self.weight.const_value
        values = np.asarray(tensor.numpy()).astype(np.float32, copy=False)
        return values if self.flipped else np.ascontiguousarray(values.T)


def layers_of(graph: Graph) -> tuple[list[Layer], dict[str, str]]:
    """The layers that a quantisation may touch, and the others with matrices of weights and why they stay.

    What computes from masks and positions alone is no layer: its activations descend from no weight and from no float
    input.
    """
    layers, left = [], {}
    for node in _computing(graph):
        if node.op_type not in (*PRODUCTS, *OTHERS):
            continue
        found, why = _layer(node, graph.weights)
        if found is not None:
            layers.append(found)
        elif why:
            left[_path(node, node.inputs[1])] = why
    taken = {layer.weight for layer in layers}
    for name, weight in graph.model.graph.initializers.items():
        sizes = [] if weight.shape is None else [int(size) for size in weight.shape.numpy()]
        told = any(name.startswith(f"{path}.") for path in left)
        if name in graph.weights and len(sizes) > 2 and min(sizes) > 1 and weight not in taken and not told:
            left[name] = f"its weight has {len(sizes)} axes"  # experts, whose matrix is chosen while the graph runs
    return layers, left


def _layer(node: ir.Node, weights: frozenset[str]) -> tuple[Layer | None, str]:
    """The layer, or why the node's matrix of weights stays in float; neither where it has none."""
    sources = [_source(value) for value in node.inputs]
    if len(sources) < 2 or sources[1] is None or sources[1][0].name not in weights:
        return None, ""
    weight, flipped = sources[1]
    if node.op_type in OTHERS:
        return None, f"{node.op_type} is no linear layer"
    axes = len(weight.shape or ())
    if axes != 2:
        return None, f"its weight has {axes} axes" if axes > 2 else ""
    if node.op_type == "MatMul":
        return Layer(_path(node, weight), node, weight, flipped), ""
    plain = all(_number(node, name, usual) == usual for name, usual in (("transA", 0), ("alpha", 1.0), ("beta", 1.0)))
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not plain or (bias is not None and not (bias.is_initializer() and len(bias.shape or ()) == 1)):
        return None, "its product is scaled or transposed, or its sum is no bias"
    return Layer(_path(node, weight), node, weight, flipped != bool(_number(node, "transB", 0)), bias), ""


def _number(node: ir.Node, name: str, usual: float) -> float:
    return float(node.attributes[name].value) if name in node.attributes else usual


def _source(value: ir.Value | None) -> tuple[ir.Value, bool] | None:
    """The initializer behind transposes of two axes and casts, and whether it is flipped; None where there is none."""
    flipped = False
    while value is not None and (node := value.producer()) is not None:
        perm = node.attributes["perm"].as_ints() if "perm" in node.attributes else FLIP
        if node.op_type == "Transpose" and tuple(perm) == FLIP:
            flipped = not flipped
        elif node.op_type not in ("Identity", "Cast"):
            return None
        value = node.inputs[0]
    return None if value is None or not value.is_initializer() else (value, flipped)


def _path(node: ir.Node, weight: ir.Value | None) -> str:
    name = "" if weight is None else str(weight.name).removesuffix(".weight")
    return node.metadata_props.get(MODULE_KEY) or name


def _computing(graph: Graph) -> Iterator[ir.Node]:
    """The nodes whose first input descends from a weight or from a float input, bodies of control flow included."""
    moved: set[ir.Value | None] = {value for value in graph.model.graph.inputs if _is_float(value)}
    moved |= {value for name, value in graph.model.graph.initializers.items() if name in graph.weights}
    for node in ir.traversal.RecursiveGraphIterator(graph.model.graph):
        bodies = [a.as_graph() for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
        if bodies or moved.intersection(node.inputs):
            moved |= {*node.outputs, *(value for body in bodies for value in body.inputs)}
        if node.inputs and node.inputs[0] in moved:
            yield node


def _is_float(value: ir.Value) -> bool:
    return value.dtype is not None and value.dtype.is_floating_point()
