"""Masks that a graph takes back: keys that one of its terms hides, and that the graph shows all the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trueport.graphs.repair.probe import Probe
from trueport.graphs.repair.terms import hidden

BIASES = {("", "Attention"): 3, ("com.microsoft", "Attention"): 5, ("com.microsoft", "MultiHeadAttention"): 5}
"""Which input of an operator its mask terms lie in."""
NEGLIGIBLE = 20.0
"""How far below the others a score has no weight: exp(-20) is 2e-9."""
FURTHER = 30.0
"""How many times the median of the shown scores a hidden one may be: of normal ones that is 20 deviations."""


def taken_back(probe: Probe, values: Mapping[str, np.ndarray]) -> bool:
    """Whether the layer, as it was, showed keys that its terms hide, and no score is large enough to explain it.

    Another term may give tokens back what a window takes (``+10000`` for global ones), a factor may set both to 0 or turn
    them round. What such a graph means is not the conjunction of its terms, which the repair would make of it.

    Args:
        probe: the layer.
        values: what its node read, and its masks, by name.
    """
    at = 0 if probe.original.op_type == "Softmax" else BIASES.get((probe.original.domain, probe.original.op_type))
    if not probe.terms or at is None or at >= len(probe.inputs) or not probe.inputs[at]:
        return False
    given = np.asarray(probe.constants.get(at, values.get(probe.inputs[at])))
    fill = min(probe.fill, float(np.finfo(given.dtype).max))
    shape = np.broadcast_shapes(given.shape, *(values[name].shape for name, _ in probe.terms))
    total = np.broadcast_to(given.astype(np.float64), shape)
    seen = ~np.broadcast_to(hidden(probe.terms, values), shape)
    # Where nothing is shown, scores are what lies under the fill, or without one where none was added.
    sizes = (total[seen],) if seen.any() else (total, total + fill)
    reach = FURTHER * min(float(np.median(np.abs(size))) for size in sizes) + NEGLIGIBLE
    if not fill > reach:  # or NaN, which another rule is about
        return False
    top = np.where(seen, total, -np.inf).max(axis=-1, keepdims=True)
    weighty = total > np.where(np.isneginf(top), -min(reach, fill / 2), top - NEGLIGIBLE)
    return bool((weighty & ~seen).any())
