"""The proof's questions: seeded, and the same rows under every padding."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BertConfig, LlamaConfig

from trueport.proof.inputs import Inputs, Limits, holes, left, right

LENGTH = 12


def inputs() -> Inputs:
    return Inputs(BertConfig(vocab_size=50), "encoder", 7, Limits(), typed=True)


def rows(mask: np.ndarray) -> list[tuple[list[int], list[int]]]:
    batch = inputs().draw("case", mask)
    assert batch.types is not None
    return [
        (ids[real].tolist(), types[real].tolist())
        for ids, types, real in zip(batch.ids, batch.types, mask == 1, strict=True)
    ]


@settings(max_examples=50, deadline=None)
@given(pads=st.lists(st.integers(0, LENGTH), min_size=1, max_size=4))
def test_rows_hold_the_same_tokens_wherever_they_are_padded(pads: list[int]):
    assert rows(left(LENGTH, pads)) == rows(right(LENGTH, pads))


def test_a_row_with_holes_begins_as_the_whole_one():
    mask = holes(LENGTH, 3, np.random.default_rng(0))
    whole = rows(np.ones((3, LENGTH), dtype=np.int64))
    for (ids, _), (full, _) in zip(rows(mask), whole, strict=True):
        assert ids == full[: len(ids)] and 0 < len(ids) < LENGTH


def test_each_row_may_start_at_a_position_of_its_own():
    batch = inputs().draw("case", left(4, [0, 2]))
    moved = type(batch)(batch.ids, batch.mask, start=(10, 20))
    assert moved.positions.tolist() == [[10, 11, 12, 13], [20, 20, 20, 21]]
    assert moved.take([1]).positions.tolist() == [[20, 20, 20, 21]]


@pytest.mark.parametrize(
    ("vocabulary", "drawn"),
    [(1, {0}), (2, {0, 1}), (3, {0, 1, 2}), (4, {1, 2, 3}), (5, {1, 2, 3, 4}), (6, {3, 4, 5}), (7, {3, 4, 5, 6})],
)
def test_a_small_vocabulary_is_drawn_from_all_the_same(vocabulary: int, drawn: set[int]):
    """Of one that is all special, or all but one, the questions were an error, or one token over and over."""
    config = LlamaConfig(vocab_size=vocabulary, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    batch = Inputs(config, "decoder", 7, Limits()).full("case", 8, 64)
    assert set(batch.ids.ravel().tolist()) == drawn
