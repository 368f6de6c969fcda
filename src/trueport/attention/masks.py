"""Every way in which a mask is written, as one boolean array: which query sees which key."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.errors import TrueportError

AXES = "(batch, heads, queries, keys)"


class MaskError(TrueportError):
    """A mask does not fit the attention that it is given to."""


def visible_keys(
    batch: int,
    queries: int,
    keys: int,
    *,
    mask: Any = None,
    lengths: Any = None,
    start: Any = None,
    end: Any = None,
    causal: bool = False,
    window: int | None = None,
    past: int = 0,
    hidden_at: float | None = None,
) -> np.ndarray:
    """Which query sees which key: all masks combined with *and*, never by a sum.

    Key ``j`` is visible to query ``i`` of row ``b`` when every mask that is given says so:

    - ``lengths``, integers (batch,): ``j < lengths[b]``. Counts from key 0, past included: right padding only.
    - ``start``, ``end``, integers (batch,), one or both: ``start[b] <= j < end[b]``. Padding on both sides.
    - ``mask``, boolean or 0 and 1 in any dtype but a float: nonzero is visible. 2D is (batch, keys), 3D (batch, queries,
      keys), 4D (batch, heads, queries, keys); an axis may be 1. Holes and whole empty rows are fine.
    - ``mask``, float, the same shapes: it is added to the scores; what is at most ``hidden_at`` is hidden.
    - ``causal``: ``j <= past + i``.
    - ``window``: ``j > past + i - window``; a window of 1 sees its own position alone.

    Args:
        batch, queries, keys: the sizes; ``keys`` includes the past.
        past: keys before the first query's own.
        hidden_at: half of the lowest finite value of the mask's dtype, unless given. A mask that hides with -10000
            needs ``hidden_at=-10000``.

    Returns:
        bool (batch, heads or 1, queries, keys).

    Raises:
        MaskError: a shape or a dtype that is none of these, NaN in a mask, a window or a past that cannot be.
    """
    if window is not None and window < 1:
        raise MaskError(f"A window of {window} sees nothing", "A window of 1 sees its own position alone.")
    if (causal or window is not None) and not 0 <= past <= keys:
        raise MaskError(f"{past} of {keys} keys cannot be past", "keys= includes the past.")
    found = np.ones((batch, 1, queries, keys), dtype=bool)
    j = np.arange(keys)
    own = past + np.arange(queries)[:, None]
    first = _row_numbers("start", start, batch)
    last = [_row_numbers(name, given, batch) for name, given in (("lengths", lengths), ("end", end))]
    if first is not None:
        found &= (j >= first[:, None])[:, None, None, :]
    for limit in last:
        if limit is not None:
            found &= (j < limit[:, None])[:, None, None, :]
    if causal:
        found &= j <= own
    if window is not None:
        found &= j > own - window
    if mask is not None:
        array = four_axes(mask, batch, queries, keys)
        if not is_boolean(array) and np.isnan(array.astype(np.float64)).any():
            raise MaskError("An additive mask holds NaN, which neither shows a key nor hides it")
        seen = array != 0 if is_boolean(array) else array > threshold(array.dtype, hidden_at)
        found = found & seen
    return found


def four_axes(mask: Any, batch: int, queries: int, keys: int) -> np.ndarray:
    """The mask as (batch or 1, heads or 1, queries or 1, keys or 1)."""
    array = np.asarray(mask)
    if array.ndim == 2:
        array = array[:, None, None, :]
    elif array.ndim == 3:
        array = array[:, None, :, :]
    elif array.ndim != 4:
        raise MaskError(f"A mask has 2, 3 or 4 axes, not {array.ndim}", "Give lengths as lengths=, start= and end=.")
    sizes = (batch, None, queries, keys)
    if any(size is not None and got not in (1, size) for got, size in zip(array.shape, sizes, strict=True)):
        raise MaskError(
            f"A mask of shape {np.asarray(mask).shape} does not fit {batch} rows, {queries} queries and {keys} keys",
            f"Its axes are (batch, keys), (batch, queries, keys) or {AXES}, each full or 1.",
        )
    return array


def is_boolean(array: np.ndarray) -> bool:
    """Whether a mask says visible or not; integers other than 0 and 1 are refused, since they would be lengths."""
    if array.dtype == bool:
        return True
    if array.dtype.kind in "iu":
        if array.size and not np.isin(array, (0, 1)).all():
            raise MaskError("An integer mask holds other numbers than 0 and 1", "Give lengths as lengths=.")
        return True
    if array.dtype.kind == "f" or array.dtype.name == "bfloat16":
        return False
    raise MaskError(f"A mask of dtype {array.dtype} is neither boolean nor additive")


def threshold(dtype: np.dtype, hidden_at: float | None) -> float:
    """The largest additive value that hides its key."""
    if hidden_at is not None:
        return hidden_at
    if dtype.name == "bfloat16":
        import ml_dtypes

        return float(ml_dtypes.finfo(dtype).min) / 2
    return float(np.finfo(dtype).min) / 2


def _row_numbers(name: str, given: Any, batch: int) -> np.ndarray | None:
    if given is None:
        return None
    array = np.asarray(given)
    if array.shape != (batch,) or array.dtype.kind not in "iu":
        raise MaskError(f"{name} has shape {array.shape} and dtype {array.dtype}, not {batch} integers")
    return array
