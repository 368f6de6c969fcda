"""Budgets of batches on which the original's own rounding costs more than where the noise was measured."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from trueport.interface import Interface, Tensor
from trueport.proof.asked import Asked
from trueport.proof.inputs import Batch, Inputs, Limits
from trueport.proof.reference import OriginalError
from trueport.proof.tolerance import MEASURED, Tolerance

FLOOR, LENGTH = 1e-6, MEASURED * 64  # a random walk of so many more tokens goes eight times as far


class Original:
    """Answers ones, off by ``noise`` at the last position."""

    def __init__(self, noise: float) -> None:
        self.noise = noise

    def forward(self, batch: Batch) -> dict[str, np.ndarray]:
        if np.isnan(self.noise):
            raise OriginalError("refused")
        answer = np.ones((*batch.ids.shape, 2))
        answer[:, -1] += self.noise
        return {"logits": answer}


def _asked(noise: float, **changed: Any) -> Asked:
    outputs = {"logits": ("batch_size", "sequence_length", 2)}
    tolerance = Tolerance({"logits": FLOOR}, FLOOR, 10.0, "")
    given: dict[str, Any] = {
        "own": Original(noise),
        "exact": Original(0.0),
        "runnable": None,
        "lengths": (7, 33),
    } | changed
    padded = Interface((Tensor("input_ids", "int64", ("batch_size", "sequence_length")),), (), ())
    inputs = Inputs(LlamaConfig(), "decoder", 7, Limits())
    return Asked(None, "decoder", None, inputs, outputs, padded, tolerance, **given)  # type: ignore[arg-type]


def _judged(asked: Asked, error: float, length: int = LENGTH) -> bool:
    """Whether an answer that is off by ``error`` at one position holds."""
    ids = np.ones((1, length), np.int64)
    batch = Batch(ids, ids)
    truth = Original(0.0).forward(batch)
    got = {"logits": truth["logits"].copy()}
    got["logits"][0, 3, 0] += error
    return not asked.compare("case", batch, got, truth).failed


@pytest.mark.parametrize(
    ("noise", "error", "holds"),
    [
        (3e-6, 0.9e-5, True),  # within ten floors as ever
        (3e-6, 2.5e-5, True),  # the original itself is off by 3e-6 here: ten times that
        (3e-6, 3.5e-5, False),
        (0.0, 1.1e-5, False),  # here the original is as exact as elsewhere
        (1.0, 7.9e-5, True),  # it falls over: no more than the random walk's share
        (1.0, 8.1e-5, False),
        (np.inf, 2e-5, False),
        (np.nan, 2e-5, False),
    ],
)
def test_a_batch_has_the_noise_that_the_original_has_there(noise: float, error: float, holds: bool) -> None:
    assert _judged(_asked(noise), error) is holds


def test_of_a_batch_as_long_as_the_measured_one_it_is_four_times_as_large_at_most() -> None:
    assert _judged(_asked(1.0), 3.9e-5, MEASURED) and not _judged(_asked(1.0), 4.1e-5, MEASURED)


@pytest.mark.parametrize("changed", [{"own": None}, {"exact": None}, {"quantised": object()}])
def test_nor_where_there_is_nothing_to_measure(changed: dict[str, Any]) -> None:
    assert not _judged(_asked(1.0, **changed), 1.1e-5)
