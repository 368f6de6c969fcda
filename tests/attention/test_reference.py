"""The oracle against torch, against loops that anyone can check, and against itself."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trueport.attention import reference, visible_keys
from trueport.attention.masks import MaskError

LOWEST = float(np.finfo(np.float32).min)


def operands(
    seed: int, batch: int, heads: int, key_heads: int, queries: int, keys: int, size: int = 5
) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    shapes = ((batch, heads, queries, size), (batch, key_heads, keys, size), (batch, key_heads, keys, size + 1))
    return [rng.standard_normal(shape) for shape in shapes]


def naive(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, seen: Any, scale: float, softcap: float, bias: Any
) -> np.ndarray:
    """One number after the other; ``seen`` and ``bias`` are functions of (b, h, i, j)."""
    batch, heads, queries, _ = q.shape
    out = np.zeros((batch, heads, queries, v.shape[-1]))
    for b, h, i in np.ndindex(batch, heads, queries):
        group = h * k.shape[1] // heads
        terms = {}
        for j in range(k.shape[2]):
            score = scale * math.fsum(q[b, h, i] * k[b, group, j])
            score = softcap * math.tanh(score / softcap) if softcap else score
            if seen(b, h, i, j):
                terms[j] = score + bias(b, h, i, j)
        total = math.fsum(math.exp(score - max(terms.values())) for score in terms.values())
        for j, score in terms.items():
            out[b, h, i] += math.exp(score - max(terms.values())) / total * v[b, group, j]
    return out


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16), batch=st.integers(1, 3), group=st.integers(1, 3), key_heads=st.integers(1, 2),
    queries=st.integers(1, 5), past=st.integers(0, 3), causal=st.booleans(), window=st.none() | st.integers(1, 4),
    softcap=st.sampled_from([0.0, 2.0]), with_bias=st.booleans(),
)  # fmt: skip
def test_equals_loops(
    seed: int, batch: int, group: int, key_heads: int, queries: int, past: int, causal: bool, window: int | None,
    softcap: float, with_bias: bool,
) -> None:  # fmt: skip
    keys = past + queries
    heads = group * key_heads
    q, k, v = operands(seed, batch, heads, key_heads, queries, keys)
    rng = np.random.default_rng(seed + 1)
    mask = rng.random((batch, keys)) < 0.6
    start, end = rng.integers(0, 2, batch), rng.integers(keys - 1, keys + 1, batch)
    bias = rng.standard_normal((1, heads, queries, keys)) if with_bias else np.zeros((1, heads, queries, keys))

    def seen(b: int, h: int, i: int, j: int) -> bool:
        return bool(
            mask[b, j] and start[b] <= j < end[b] and (not causal or j <= past + i)
            and (window is None or j > past + i - window)
        )  # fmt: skip

    got = reference(
        q, k[:, :, past:], v[:, :, past:], mask=mask, start=start, end=end, causal=causal, window=window,
        past=(k[:, :, :past], v[:, :, :past]), softcap=softcap, bias=bias if with_bias else None, scale=0.7,
    )  # fmt: skip
    wanted = naive(q, k, v, seen, 0.7, softcap, lambda b, h, i, j: bias[0, h, i, j])
    np.testing.assert_allclose(got, wanted, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**16), heads=st.sampled_from([(1, 1), (4, 2), (6, 1)]), axes=st.sampled_from([2, 3, 4]),
    additive=st.booleans(), queries=st.integers(1, 5), keys=st.integers(1, 6),
)  # fmt: skip
def test_equals_sdpa(
    seed: int, heads: tuple[int, int], axes: int, additive: bool, queries: int, keys: int
) -> None:  # fmt: skip
    """torch's own operator in float64 gives zeros where a boolean mask, or -inf, hides every key."""
    q, k, v = operands(seed, 2, *heads, queries, keys)
    rng = np.random.default_rng(seed)
    shape = {2: (2, keys), 3: (2, queries, keys), 4: (2, heads[0], queries, keys)}[axes]
    mask: np.ndarray = rng.random(shape) < 0.5
    full = mask.reshape({2: (2, 1, 1, keys), 3: (2, 1, queries, keys), 4: shape}[axes])
    if additive:
        added = rng.standard_normal(shape)
        mask = np.where(mask, added, -np.inf)
        full = np.where(full, added.reshape(full.shape), -np.inf)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        *(torch.from_numpy(array) for array in (q, k, v)), attn_mask=torch.from_numpy(full), enable_gqa=True
    )
    np.testing.assert_allclose(reference(q, k, v, mask=mask), wanted.numpy(), atol=1e-12)


def test_causal_equals_sdpa() -> None:
    q, k, v = operands(0, 2, 4, 4, 6, 6)
    wanted = torch.nn.functional.scaled_dot_product_attention(*map(torch.from_numpy, (q, k, v)), is_causal=True)
    np.testing.assert_allclose(reference(q, k, v, causal=True), wanted.numpy(), atol=1e-12)


def test_every_spelling_of_one_mask_is_the_same() -> None:
    q, k, v = operands(1, 3, 2, 2, 4, 4)
    lengths = np.array([4, 2, 1])
    flat = np.arange(4) < lengths[:, None]
    wanted = reference(q, k, v, mask=flat)
    lowest = np.where(flat, 0, LOWEST).astype(np.float32)
    for spelling in (
        {"lengths": lengths},
        {"start": np.zeros(3, int), "end": lengths},
        {"mask": flat.astype(np.int64)},
        {"mask": np.repeat(flat[:, None], 4, axis=1)},
        {"mask": flat[:, None, None]},
        {"mask": lowest},
        {"mask": np.where(flat, 0, -np.inf)},
        {"mask": np.where(flat, 0, -65504).astype(np.float16)},
        {"mask": np.where(flat, 0, -10000.0), "hidden_at": -10000.0},
        {"bias": np.where(flat, 0, -np.inf)[:, None, None]},
    ):
        np.testing.assert_array_equal(reference(q, k, v, **spelling), wanted)


def test_policies_of_a_row_that_sees_nothing() -> None:
    q, k, v = operands(2, 1, 2, 2, 3, 3)
    mask = np.array([[0, 1, 1]])
    first = {rows: reference(q, k, v, mask=mask, causal=True, rows=rows)[0, :, 0] for rows in ("zeros", "uniform")}
    assert (first["zeros"] == 0).all()
    np.testing.assert_allclose(first["uniform"], v[0].mean(axis=1))
    for rows in ("zeros", "uniform", "as-model"):  # the other rows do not depend on it
        others = reference(q, k, v, mask=mask, causal=True, rows=rows)[0, :, 1:]
        np.testing.assert_array_equal(others, reference(q, k, v, mask=mask, causal=True)[0, :, 1:])


def test_as_model_sums_the_fills() -> None:
    """The seed's case: two masks of -10000 that are added leave row 0 to the keys that only one of them hides."""
    q, k, v = operands(3, 1, 1, 1, 7, 7)
    mask = np.array([[0, 1, 1, 0, 0, 1, 0]])
    got = reference(q, k, v, mask=mask, causal=True, rows="as-model", fill=-10000.0)
    scores = q[0, 0] @ k[0, 0].T / math.sqrt(5)
    summed = scores[0] - 10000.0 * ((mask[0] == 0).astype(int) + (np.arange(7) > 0))
    weights = np.exp(summed - summed.max())
    np.testing.assert_allclose(got[0, 0, 0], weights / weights.sum() @ v[0, 0], atol=1e-12)
    assert np.isnan(reference(q, k, v, mask=np.full((1, 7), -np.inf), rows="as-model")).all()


@pytest.mark.parametrize("fill", [-10000.0, LOWEST, -np.inf])
@pytest.mark.parametrize("additive", [False, True])
def test_as_model_equals_a_graph_that_adds(fill: float, additive: bool) -> None:
    """The lowest number twice is -inf in float32, in every form of the mask; it was not, and differed."""
    q, k, v = operands(3, 2, 2, 2, 7, 7)
    mask = np.array([[0, 1, 1, 0, 0, 1, 0], [0, 0, 0, 0, 0, 0, 0]], dtype=bool)
    added = torch.where(torch.from_numpy(mask)[:, None, None], 0.0, fill).float()
    causal = torch.where(torch.ones(7, 7).tril().bool(), 0.0, fill)
    scores = torch.from_numpy(q @ k.swapaxes(-1, -2) / math.sqrt(5)).float()
    wanted = torch.softmax(scores + added + causal, -1) @ torch.from_numpy(v).float()
    given = added.numpy()[:, 0, 0] if additive else mask
    got = reference(q, k, v, mask=given, causal=True, rows="as-model", fill=fill, hidden_at=fill if additive else None)
    # Scores of 1 beside -20,000 are rounded to a thousandth in float32.
    np.testing.assert_allclose(got, wanted.numpy(), atol=2e-2 if fill == -10000.0 else 1e-5)


def test_a_past_is_counted_by_any_integer() -> None:
    q, k, v = operands(4, 1, 2, 2, 3, 5)
    np.testing.assert_array_equal(
        reference(q, k, v, causal=True, past=np.int64(2)), reference(q, k, v, causal=True, past=2)
    )


def test_no_score_reaches_a_hidden_key() -> None:
    """At scores of 1e8 any fill value would leak."""
    q, k, v = operands(4, 1, 1, 1, 4, 4)
    mask = np.array([[1, 0, 1, 1]])
    v[:, :, 1] = 1e6
    assert np.abs(reference(q * 1e4, k * 1e4, v, mask=mask)).max() < 10


def test_a_bias_broadcasts_from_the_right() -> None:
    """As many rows as queries: two axes were read as (batch, keys), three as (batch, queries, keys)."""
    q, k, v = operands(4, 4, 4, 4, 4, 4)
    bias = np.random.default_rng(4).normal(size=(4, 4, 4))
    for short, full in ((bias[0], bias[None, :1]), (bias, bias[None])):
        np.testing.assert_array_equal(reference(q, k, v, bias=short), reference(q, k, v, bias=full))


def test_visible_keys_with_past_and_window() -> None:
    seen = visible_keys(1, 2, 5, causal=True, window=2, past=3)
    np.testing.assert_array_equal(seen[0, 0], [[0, 0, 1, 1, 0], [0, 0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mask": np.ones(4, bool)}, "2, 3 or 4 axes"),
        ({"mask": np.ones((2, 3), bool)}, "does not fit"),
        ({"mask": np.full((1, 4), 3)}, "lengths="),
        ({"mask": np.ones((1, 4), complex)}, "neither boolean nor additive"),
        ({"lengths": [1.5]}, "not 1 integers"),
        ({"rows": "nan"}, "no policy"),
        ({"window": 0}, "window of 0"),
        ({"causal": True, "past": 5}, "5 of 4 keys"),
        ({"causal": True, "past": -1}, "-1 of 4 keys"),
        ({"mask": np.full((1, 4), np.nan)}, "NaN"),
        ({"bias": np.zeros((3, 4))}, "bias of shape"),
        ({"past": (np.zeros((1, 3, 1, 5)), np.zeros((1, 3, 1, 6)))}, "does not fit"),
        ({"past": (np.zeros((1, 2, 1, 5)),)}, "does not fit"),
        ({"past": (np.zeros((1, 2, 1, 5)), np.zeros((1, 2, 2, 6)))}, "does not fit"),
        ({"mask": np.ones((1, 3, 4, 4), bool)}, "3 heads"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], words: str) -> None:
    q, k, v = operands(5, 1, 2, 2, 4, 4)
    with pytest.raises(MaskError, match=words):
        reference(q, k, v, **options)
