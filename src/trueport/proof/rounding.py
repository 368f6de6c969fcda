"""Where rounding decides what the original itself answers, its float64 self is not the only truth."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from trueport.proof.tolerance import MULTIPLE

SHARE = 0.1
"""The part of an output, of its elements or of its scale, that may be decided by rounding: of more, nothing is known."""


def settled(
    truth: Mapping[str, np.ndarray], own: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """The truth; where the original's own dtype leaves it, what the artefact gives if that is as near.

    A float32 that overflows is infinite there and finite in float64; a float that is cut to an integer may lie on
    either side of the cut.

    Args:
        truth: outputs of the original in float64, by name.
        own: those of the original in its own dtype.
        got: those of the artefact.
    """
    return {
        name: _settled(wanted, own[name], np.asarray(got[name])) if np.shape(got[name]) == wanted.shape else wanted
        for name, wanted in truth.items()
    }


def _settled(wanted: np.ndarray, own: np.ndarray, value: np.ndarray) -> np.ndarray:
    if wanted.dtype.kind == "f":
        lost = np.isfinite(wanted) & ~np.isfinite(own)
        return np.where(lost & (np.isnan(own) | (value == own)), own, wanted)
    exact = wanted.astype(np.float64)
    near = MULTIPLE * np.abs(own.astype(np.float64) - exact)
    small = near <= SHARE * np.abs(exact).max(initial=0.0)
    few = float((near > 0).mean()) <= SHARE if near.size else True
    taken = (np.abs(value.astype(np.float64) - exact) <= near) & (small | few)
    return np.where(taken, value, wanted).astype(wanted.dtype)
