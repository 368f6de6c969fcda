"""Which layer of an artefact's graphs takes which form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trueport.targets.onnx.layers import layers_of
from trueport.targets.onnx.quantize import BITS, FLOAT, GATES, STATIC, Place, Range, Weight, check_graphs, quantise
from trueport.targets.quantized import Quantized, loosest

if TYPE_CHECKING:
    from trueport.proof.calibration import Original
    from trueport.targets.onnx.blocks import Blocks
    from trueport.targets.onnx.lower import Graph


def quantised(graphs: Sequence[Graph], kind: str, original: Original, block_size: int | None = None) -> Quantized:
    """Quantise graphs in place, in blocks of at most ``block_size`` weights, and say what was done.

    Raises:
        LoweringError: there is nothing to quantise, or it is not in float32.
    """
    check_graphs(graphs, kind)
    found = {graph.name: layers_of(graph) for graph in graphs}
    left = {path: why for _, reasons in found.values() for path, why in reasons.items()}
    places = [(name, layer.path) for name, (layers, _) in found.items() for layer in layers]
    forms: Mapping[Place, str] = dict.fromkeys(places, kind)
    ranges: Mapping[Place, Range] = {}
    why = ""
    nearer: Mapping[Weight, Blocks] = {}
    if original.prompts and kind in ("int4", "auto"):
        from trueport.targets.onnx.rounded import rounded

        nearer = rounded(graphs, original, block_size)
    if kind == STATIC:
        from trueport.targets.onnx.trial import ranges as measured

        ranges = measured(graphs, original)
        forms = {place: STATIC if place in ranges else FLOAT for place in places}
        why = "no input of the calibration reaches it"
    elif kind == "auto":
        from trueport.targets.onnx.search import Way, searched

        forms = searched(graphs, original, GATES, Way(block_size, nearer))
        why = "the gate does not hold with it in 8 bits"
    for graph in graphs:
        quantise(graph, forms.__getitem__, ranges, block_size, nearer)
    left |= {path: why for (_, path), form in forms.items() if form == FLOAT}
    layers = tuple(dict.fromkeys(path for (_, path), form in forms.items() if form != FLOAT))
    told = _forms(forms) if kind == "auto" else {}
    told |= {} if block_size is None else {"block_size": block_size}
    gate = loosest(GATES, {form for form in forms.values() if form != FLOAT} or {kind})
    return Quantized(kind, layers, left, gate, told)


def _forms(forms: Mapping[Place, str]) -> dict[str, Any]:
    """The layers of each form that a search chose."""
    return {"forms": {form: [path for (_, path), own in forms.items() if own == form] for form in BITS}}
