"""Masks that a graph takes back: keys that one of its terms hides, and that the graph shows all the same.

Another term takes them back, or a softmax does: what is added to all of a query's scores alike changes nothing.
"""

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


def hides_whole_rows(probe: Probe, values: Mapping[str, np.ndarray], mask: np.ndarray | None, past: int) -> bool:
    """Whether a term that is added hides all keys or none, and all from a query that has some: a gate of queries or heads.

    The softmax does not see it, and the repair would make it hide. Rows all of whose keys are padding are no such ones, nor
    are the queries of padding.

    Args:
        probe: the layer.
        values: what its node read, and its masks, by name.
        mask: the padding mask, bool (rows, keys), whichever of its two values may be padding; None without one.
        past: how many keys lie before the first query.
    """
    rank = values[probe.inputs[0]].ndim if probe.original.op_type == "Softmax" else 4
    added = [hidden([term], values) for term in probe.terms if term[1] is None]
    return any(_whole_rows(found, rank, mask, past) for found in added if found.ndim <= rank in (3, 4))


def _whole_rows(found: np.ndarray, rank: int, mask: np.ndarray | None, past: int) -> bool:
    """The same for one term: what it hides, with as many axes as scores of ``rank`` axes or fewer."""
    found = found.reshape((1,) * (rank - found.ndim) + found.shape)
    found = found[:, None] if rank == 3 else found
    rows, keys = (found.shape[0], found.shape[-1]) if mask is None else mask.shape
    if found.shape[0] not in (1, rows) or found.shape[-1] not in (1, keys):
        return False
    # Of a batch's row with both of a mask's values neither can hide all.
    mixed = np.ones(rows, dtype=bool) if mask is None else mask.any(axis=1) & ~mask.all(axis=1)
    if (found.any(axis=-1) != found.all(axis=-1)).any():
        return False  # it tells keys apart
    whole = np.broadcast_to(found.all(axis=-1), (rows, *found.shape[1:-1]))[mixed].any(axis=1)
    own = None if mask is None else mask[mixed, past:]
    if own is None or (whole.shape[-1] == 1 and own.shape[-1] != 1):
        return bool(whole.any())
    return whole.shape == own.shape and bool((whole & own).any() and (whole & ~own).any())
