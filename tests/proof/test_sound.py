"""The proof of a model of sound: its pieces, the positions that it makes of them, and faults in how it counts them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import trueport
from tests import zoo
from tests.conftest import Exported
from tests.proof.test_planted_faults import Edit, Judged, cases, failed, judged, mask_of_ones, statuses
from trueport.interface import Dimension, Interface, Tensor
from trueport.proof.inputs import Batch, Inputs, Limits, inputs_of, right
from trueport.proof.positions import positions

__all__ = ["judged"]  # a fixture
FEWEST, STRIDE = 11, 6  # of the zoo's models
AXIS = "((samples - 5)//6)"
ROWS = ("batch_size", "samples")
SOUND = Interface(
    (Tensor("input_values", "float32", ROWS), Tensor("attention_mask", "int64", ROWS)),
    (),
    (Dimension("batch_size"), Dimension("samples", FEWEST)),
)


def inputs() -> Inputs:
    return inputs_of(zoo.build("wav2vec2").config, "encoder", 7, SOUND, Limits(shortest=FEWEST))


def test_pieces_begin_with_the_fewest_samples() -> None:
    """And the same row holds the same sound however it is padded."""
    drawn = inputs()
    assert [drawn.full("case", 1, pieces).ids.shape[1] for pieces in (1, 2, 5)] == [11, 22, 55]
    assert [drawn.pieces(samples) for samples in (1, 11, 12, 22, 23)] == [1, 1, 2, 2, 3]
    batch = drawn.draw("case", right(5, [0, 2, 5]))
    assert batch.mask.sum(axis=1).tolist() == [55, 33, 0]
    assert batch.ids.dtype == np.float32 and not batch.ids[batch.mask == 0].any()
    whole = drawn.full("case", 3, 5)
    assert np.array_equal(batch.ids[1, :33], whole.ids[1, :33])
    assert batch.to_json()["attention_mask"] == ["55 of 1", "33 of 1, 22 of 0", "55 of 0"]
    other = drawn.scrambled("other", batch)
    assert np.array_equal(other.ids[batch.mask == 1], batch.ids[batch.mask == 1]) and other.ids[batch.mask == 0].all()


def test_an_even_number_of_fewest_samples_makes_odd_pieces() -> None:
    drawn = Inputs(zoo.build("wav2vec2").config, "encoder", 7, Limits(), sound=400)
    assert [drawn.full("case", 1, pieces).ids.shape[1] for pieces in (1, 2, 3)] == [400, 801, 1202]
    assert [drawn.pieces(samples) for samples in (400, 401, 801, 802)] == [1, 2, 2, 3]


def test_real_positions_follow_from_the_axis() -> None:
    mask = (np.arange(40) < np.array([40, 17, 16, 11, 10, 0])[:, None]).astype(np.int64)
    batch = Batch(np.zeros(mask.shape, np.float32), mask)
    found = positions(("batch_size", AXIS, 20), SOUND, batch)
    assert found is not None and found.shape == (6, 5)
    assert found.sum(axis=1).tolist() == [5, 2, 1, 1, 0, 0] and found[:, 0].tolist() == [True] * 4 + [False] * 2
    for axis in ("samples", "logits_dim_1"):  # as long as the input, or called otherwise
        assert np.array_equal(positions(("batch_size", axis, 20), SOUND, batch), mask == 1)  # type: ignore[arg-type]
    assert positions(("batch_size", 3), SOUND, batch) is None


@pytest.mark.slow
def test_a_right_export_raises_no_alarm_and_answers_as_the_original(judged: Judged, exported: Exported) -> None:
    """Any number of samples, with and without a mask: the same letters as the unpatched model writes down."""
    asked = {"shapes", "padding", "inert", "finite"}
    assert statuses(judged("wav2vec2", None, original=False))["pass"] == asked
    model, artifact = zoo.build("wav2vec2"), trueport.load(exported("wav2vec2"))
    generator = torch.Generator().manual_seed(5)
    for samples in (*range(FEWEST, FEWEST + 2 * STRIDE), 500):
        sound = torch.randn(3, samples, generator=generator)
        counts = torch.tensor([samples, samples - samples // 3, FEWEST])[:, None]
        for mask in ({}, {"attention_mask": (torch.arange(samples) < counts).long()}):
            with torch.no_grad():
                wanted = model(sound, **mask).logits
            got = artifact(input_values=sound, **mask)
            assert type(got).__name__ == "CausalLMOutput"
            torch.testing.assert_close(got.logits, wanted, rtol=1e-4, atol=1e-4)
            assert torch.equal(got.logits.argmax(-1), wanted.argmax(-1))


def fewer_samples(number: int) -> Callable[[Edit], None]:
    """The mask without its last samples, at the right end: rows are so much shorter."""

    def plant(edit: Edit) -> None:
        def cut(mask):  # type: ignore[no-untyped-def]
            rest = edit.op("Slice", mask, edit.constant([number]), edit.constant([1 << 40]), edit.constant([1]))
            none = edit.op("Slice", mask, edit.constant([0]), edit.constant([number]), edit.constant([1]))
            return edit.op("Concat", rest, edit.op("Mul", none, edit.constant(0)), axis=1)

        edit.replace(edit.input("attention_mask"), cut)

    return plant


@pytest.mark.slow
@pytest.mark.parametrize("original", [True, False])
def test_a_lost_mask(judged: Judged, original: bool) -> None:
    found = statuses(judged("wav2vec2", mask_of_ones, original=original))
    assert found["fail"] == {"padding", "inert"} and found["pass"] == {"shapes", "finite"}


@pytest.mark.slow
def test_a_row_that_is_one_sample_shorter(judged: Judged) -> None:
    """It has a position fewer only where it ended at one's last sample."""
    proof = judged("wav2vec2", fewer_samples(1), clauses=["padding"], original=False)
    assert failed(proof) == {"padding"}
    assert {name for name, wrong in cases(proof, "padding").items() if wrong} == {"rows of 132, 16, 11, 17 samples"}
