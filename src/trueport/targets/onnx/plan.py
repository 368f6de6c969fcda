"""Which layer of an artefact's graphs takes which form."""

from __future__ import annotations

from collections.abc import Sequence

from trueport.targets.onnx.layers import layers_of
from trueport.targets.onnx.lower import Graph
from trueport.targets.onnx.quantize import GATES, check_graphs, quantise
from trueport.targets.quantized import Quantized


def quantised(graphs: Sequence[Graph], kind: str) -> Quantized:
    """Quantise graphs in place, and say what was done.

    Raises:
        LoweringError: there is nothing to quantise, or it is not in float32.
    """
    check_graphs(graphs, kind)
    found = [layers_of(graph) for graph in graphs]
    left = {path: why for _, reasons in found for path, why in reasons.items()}
    paths = tuple(dict.fromkeys(layer.path for layers, _ in found for layer in layers))
    for graph in graphs:
        quantise(graph, lambda _place: kind)
    return Quantized(kind, paths, left, GATES[kind])
