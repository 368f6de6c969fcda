"""Encoders: what they are traced over."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import trueport
from tests import zoo


@pytest.mark.slow
def test_a_window_wider_than_half_the_positions_is_traced_within_them(tmp_path: Path) -> None:
    """BigBird's blocks of 64 asked for 131 tokens of a model of 128, which was then said not to run."""
    entry = next(entry for entry in zoo.ENTRIES if entry.name == "bert")
    torch.manual_seed(0)
    config = transformers.BigBirdConfig(**{**entry.config, "attention_type": "original_full"})
    assert (config.block_size, config.max_position_embeddings) == (64, 128)
    model = transformers.BigBirdForSequenceClassification(config).eval()
    zoo.amplify(model, seed=0)
    assert trueport.export(model, tmp_path / "out", tokenizer=None).verdict == "proven"
