"""What a repaired layer must give, by the float64 reference, from the values that its original node read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from trueport.attention import reference, visible_keys
from trueport.attention.masks import four_axes
from trueport.graphs.repair import standard
from trueport.graphs.repair.probe import Probe
from trueport.graphs.repair.terms import hidden

Values = Mapping[str, np.ndarray]


class Wanted(NamedTuple):
    """What a layer must give.

    Attributes:
        output: (..., size) in float64.
        score: the largest one.
        empty: whether a query sees no key.
    """

    output: np.ndarray
    score: float
    empty: bool


def expected(probe: Probe, values: Values, rows: str) -> Wanted:
    """What a layer must give.

    Args:
        probe: the layer.
        values: what its node read, and its masks, by name.
        rows: the policy of rows that see no key.
    """
    if standard.is_standard(probe.original):
        return Wanted(*standard.expected(probe, values))
    return _softmax(probe, values, rows) if probe.original.op_type == "Softmax" else _operator(probe, values, rows)


def _softmax(probe: Probe, values: Values, rows: str) -> Wanted:
    """Weights of a layer of its own: queries and keys of zeros, its scores as bias, the identity as values."""
    scores = values[probe.inputs[0]].astype(np.float64)
    seen = np.broadcast_to(_terms(probe, values, np.ones(scores.shape, dtype=bool)), scores.shape)
    shape = scores.shape
    flat = (1, int(np.prod(shape[:-2])), *shape[-2:])
    shown = np.where(seen, scores, 0.0).reshape(flat)
    keys = shape[-1]
    nothing = np.zeros((1, flat[1], keys, 1))
    eye = np.broadcast_to(np.eye(keys), (1, flat[1], keys, keys))
    queries = np.zeros((1, flat[1], shape[-2], 1))
    weights = reference(queries, nothing, eye, bias=shown, mask=seen.reshape(flat), rows=rows)
    return Wanted(weights.reshape(shape), float(np.abs(shown).max(initial=0.0)), not seen.any(axis=-1).all())


def _terms(probe: Probe, values: Values, seen: np.ndarray) -> np.ndarray:
    """``seen`` without what the mask terms hide: a condition, or 0 and a fill."""
    return seen & ~hidden(probe.terms, values)


def _operator(probe: Probe, values: Values, rows: str) -> Wanted:
    """An operator's output (batch, length, hidden) from its inputs, projections in float64 too."""
    read = {i: probe.constants.get(i, values.get(name)) for i, name in enumerate(probe.inputs) if name}
    slots = {"Attention": (5, 4, None), "QAttention": (None, 8, None), "MultiHeadAttention": (5, 6, 7)}
    bias_at, past_at, values_at = slots[probe.original.op_type]
    parts = _given(read) if probe.original.op_type == "MultiHeadAttention" else _projected(probe, read)
    count = int(probe.attribute("num_heads", 1))
    q, k, v = (part.reshape(*part.shape[:2], count, -1).swapaxes(1, 2) for part in parts)
    past = read.get(past_at)
    if past is not None:
        pair = (past, read[values_at]) if values_at is not None else (past[0], past[1])
        k, v = (np.concatenate([old.astype(np.float64), new], axis=2) for old, new in zip(pair, (k, v), strict=True))
    batch, queries, keys = len(q), q.shape[2], k.shape[2]
    before = keys - queries
    causal = bool(probe.attribute("unidirectional", 0))
    masks = _mask(values.get(probe.mask), batch)
    seen = visible_keys(batch, queries, keys, causal=causal, past=before, **masks)
    bias = read.get(bias_at) if bias_at is not None else None
    if probe.terms:
        seen = _terms(probe, values, seen)
    if bias is not None:
        bias = four_axes(bias, batch, queries, keys).astype(np.float64)
        bias = np.where(np.broadcast_to(seen, (batch, count, queries, keys)), bias, 0.0)
    scale = float(probe.attribute("scale", 0.0)) or None
    out = reference(q, k, v, mask=seen, past=before, bias=bias, scale=scale, rows=rows)
    scores = q @ k.swapaxes(-1, -2) * (scale or 1 / np.sqrt(q.shape[-1]))
    output = out.swapaxes(1, 2).reshape(batch, queries, -1)
    return Wanted(output, float(np.abs(scores).max(initial=0.0)), not seen.any(axis=-1).all())


def _mask(mask: np.ndarray | None, batch: int) -> dict[str, Any]:
    """An operator's mask as the reference takes it."""
    if mask is None:
        return {}
    if mask.ndim > 1:
        return {"mask": mask > 0 if mask.dtype != bool else mask}
    if len(mask) == 2 * batch:
        return {"end": mask[:batch], "start": mask[batch:]}
    return {"lengths": mask}


def _projected(probe: Probe, read: Mapping[int, Any]) -> list[np.ndarray]:
    """Queries, keys and values (batch, length, hidden) of Attention and QAttention."""
    if probe.original.op_type == "QAttention":
        x, w = (read[i].astype(np.float64) for i in (0, 1))
        x = x - np.asarray(read.get(6, 0), dtype=np.float64)
        w = w - np.asarray(read.get(7, 0), dtype=np.float64)
        whole = x @ w * np.asarray(read[3], dtype=np.float64) * np.asarray(read[4], dtype=np.float64)
    else:
        whole = read[0].astype(np.float64) @ read[1].astype(np.float64)
    if read.get(2) is not None:
        whole = whole + read[2].astype(np.float64)
    sizes = list(probe.attribute("qkv_hidden_sizes", [])) or [whole.shape[-1] // 3] * 3
    return np.split(whole, np.cumsum(sizes)[:2], axis=-1)


def _given(read: Mapping[int, Any]) -> list[np.ndarray]:
    """Queries, keys and values of MultiHeadAttention, biases added."""
    parts = [read[i].astype(np.float64) for i in range(3)]
    if read.get(3) is None:
        return parts
    width = parts[0].shape[-1]
    biases = np.split(read[3].astype(np.float64), [width, 2 * width])
    return [part + bias for part, bias in zip(parts, biases, strict=True)]
