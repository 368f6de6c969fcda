"""Masked attention in float64, written to be read: the oracle of everything here that fuses, audits or repairs masks."""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.attention.masks import AXES, MaskError, four_axes, is_boolean, visible_keys

POLICIES = ("zeros", "uniform", "as-model")
"""What a query that sees no key gives."""
LOWEST = float(np.finfo(np.float32).min)
"""The fill of most graphs: the lowest float32."""


def reference(
    query: Any,
    key: Any,
    value: Any,
    *,
    mask: Any = None,
    lengths: Any = None,
    start: Any = None,
    end: Any = None,
    causal: bool = False,
    window: int | None = None,
    past: tuple[Any, Any] | int | None = None,
    bias: Any = None,
    scale: float | None = None,
    softcap: float = 0.0,
    rows: str = "zeros",
    fill: float = LOWEST,
    hidden_at: float | None = None,
) -> np.ndarray:
    """Masked attention.

    With ``s[i, j] = scale * <query[i], key[j]>`` and ``V(i)`` the keys that query ``i`` sees::

        t[i, j] = softcap * tanh(s[i, j] / softcap) + bias[i, j] + additive mask[i, j]     (no cap where softcap is 0)
        w[i, j] = exp(t[i, j]) / sum over k in V(i) of exp(t[i, k])   for j in V(i), else 0
        output[i] = sum over j of w[i, j] * value[j]

    (Vaswani et al. 2017, eq. 1; the cap stands where Gemma 2 has it, before bias and mask.) A hidden key has weight 0
    exactly: no fill value enters, whatever the scores are.

    Args:
        query: (batch, heads, queries, size), any real dtype; all arithmetic is float64.
        key: (batch, key heads, keys, size); each key head serves ``heads / key heads`` neighbouring query heads.
        value: (batch, key heads, keys, value size).
        mask, lengths, start, end, causal, window, hidden_at: see ``visible_keys``. A visible entry of an additive mask
            is added to its score.
        past: earlier keys and values (batch, key heads, past, size), which go in front; or how many of the keys are
            past already. Without it query 0 stands at key 0.
        bias: added to the scores, broadcast to (batch, heads, queries, keys) from the right as NumPy does, so that two
            axes are (queries, keys); it hides nothing unless it is -inf.
        scale: ``1 / sqrt(size)`` unless given.
        softcap: 0 for none.
        rows: what a query gives that sees no key. ``zeros``: zeros. ``uniform``: the mean of all values, padding and
            future included, as a lowest-float fill gives. ``as-model``: the softmax of the scores plus ``fill`` for
            each mask that hides the key, which is what a graph computes that adds its masks: past the lowest float32 a
            sum is -inf, so that two masks of that fill leave the keys that one of them hides; NaN where all are -inf.
        fill: what a boolean mask stands for under ``as-model``.

    Returns:
        float64 (batch, heads, queries, value size).

    Raises:
        MaskError: shapes that do not fit, or an unknown policy.
    """
    if rows not in POLICIES:
        raise MaskError(f"{rows} is no policy for rows that see no key", f"There are {', '.join(POLICIES)}.")
    q, k, v, before = _operands(query, key, value, past)
    batch, _, queries, size = q.shape
    keys = k.shape[2]
    if mask is not None and np.ndim(mask) == 4 and np.shape(mask)[1] not in (1, q.shape[1]):
        raise MaskError(f"A mask of {np.shape(mask)[1]} heads does not fit {q.shape[1]}", f"Its axes are {AXES}.")
    scores = (q @ k.swapaxes(-1, -2)) * (1 / np.sqrt(size) if scale is None else scale)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    seen = visible_keys(
        batch, queries, keys, mask=mask, lengths=lengths, start=start, end=end, causal=causal, window=window,
        past=before, hidden_at=hidden_at,
    )  # fmt: skip
    if bias is not None:
        added = _broadcast(bias, scores.shape)
        seen = seen & (added != -np.inf)
        scores = scores + np.where(added == -np.inf, 0.0, added)
    additive = None
    if mask is not None and not is_boolean(np.asarray(mask)):
        additive = four_axes(mask, batch, queries, keys).astype(np.float64)
    seen = np.broadcast_to(seen, scores.shape)
    shown = scores if additive is None else scores + np.where(seen, additive, 0.0)
    weights = _softmax(np.where(seen, shown, -np.inf))
    empty = ~seen.any(axis=-1, keepdims=True)
    if rows == "uniform":
        weights = np.where(empty, 1 / max(keys, 1), weights)
    elif rows == "as-model":
        terms = [{"lengths": lengths, "start": start, "end": end}, {"causal": causal}, {"window": window}]
        if additive is None:
            terms.append({"mask": mask})
        hidden = [~visible_keys(batch, queries, keys, past=before, **term) for term in terms]  # type: ignore[arg-type]
        summed = sum(np.where(h, fill, 0.0) for h in hidden) + (0.0 if additive is None else additive)
        summed = np.where(summed < LOWEST, -np.inf, summed)
        weights = np.where(empty, _softmax(scores + summed, nan=True), weights)
    return np.asarray(weights @ v)


def _operands(query: Any, key: Any, value: Any, past: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """float64 operands, key heads repeated, the past in front; and how many keys are past."""
    q, k, v = (np.asarray(array).astype(np.float64) for array in (query, key, value))
    if q.ndim != 4 or k.ndim != 4 or v.ndim != 4:
        raise MaskError("query, key and value have the axes (batch, heads, length, size)")
    counted = isinstance(past, (int, np.integer))
    before = int(past) if counted else 0
    if past is not None and not counted:
        earlier = [np.asarray(array).astype(np.float64) for array in past]
        before = _past_keys(earlier, k, v)
        k, v = np.concatenate([earlier[0], k], axis=2), np.concatenate([earlier[1], v], axis=2)
    heads, key_heads = q.shape[1], k.shape[1]
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3] or heads % max(key_heads, 1):
        raise MaskError(f"query {q.shape}, key {k.shape} and value {v.shape} do not fit", "See the axes in the help.")
    return q, np.repeat(k, heads // key_heads, axis=1), np.repeat(v, heads // key_heads, axis=1), before


def _past_keys(earlier: list[np.ndarray], key: np.ndarray, value: np.ndarray) -> int:
    """How many keys the past holds."""
    shapes = [array.shape for array in earlier]
    fits = len(earlier) == 2 and all(
        len(shape) == 4 and (*shape[:2], shape[3]) == (*own.shape[:2], own.shape[3])
        for shape, own in zip(shapes, (key, value), strict=True)
    )
    if not fits or shapes[0][2] != shapes[1][2]:
        raise MaskError(
            f"A past of shapes {shapes} does not fit key {key.shape} and value {value.shape}",
            "It is earlier keys and values, of the same batch, heads and sizes, or how many of the keys are past.",
        )
    return int(shapes[0][2])


def _broadcast(bias: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The bias in float64, of a shape that broadcasts to the scores'."""
    added = np.asarray(bias).astype(np.float64)
    try:
        return np.broadcast_to(added, shape)
    except ValueError as error:
        raise MaskError(
            f"A bias of shape {added.shape} does not fit scores of shape {shape}",
            f"It is broadcast to {AXES} from the right.",
        ) from error


def _softmax(scores: np.ndarray, *, nan: bool = False) -> np.ndarray:
    """Softmax over the last axis; a row of -inf gives zeros, or NaN as IEEE arithmetic does where ``nan`` asks."""
    if scores.shape[-1] == 0:
        return scores
    highest = scores.max(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        shifted = np.exp(scores - (highest if nan else np.where(np.isfinite(highest), highest, 0.0)))
        total = shifted.sum(axis=-1, keepdims=True)
        return np.asarray(shifted / (total if nan else np.where(total == 0, 1.0, total)))
