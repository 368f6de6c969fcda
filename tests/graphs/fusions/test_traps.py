"""What fusers get wrong about masks: planted, the proof undoes it and says where; ours is right there."""

from __future__ import annotations

import numpy as np
import pytest

from tests.conftest import Exported
from tests.graphs.fusions.planted import (
    filled_with,
    grouped_query,
    lengths_for_a_mask,
    one_row_masks,
    planted,
    rank_three_gemms,
)
from trueport.artifact import read_manifest, sha256
from trueport.graphs.fusions import FUSIONS
from trueport.optimization import optimize

pytestmark = pytest.mark.slow

ROTARY_INSIDE = planted("rotary-inside", grouped_query(rotary=True))
GROUPED_QUERY = planted("grouped-query", grouped_query(rotary=False))
LENGTHS = planted("lengths", lengths_for_a_mask)
INFINITE = planted("infinite-bias", filled_with(float("-inf")))
LOWEST = planted("lowest-bias", filled_with(float(np.finfo(np.float32).min)))
ONE_ROW = planted("one-row-masks", one_row_masks)
GEMMS = planted("rank-three-gemms", rank_three_gemms)


@pytest.mark.parametrize(
    ("model", "plant", "words"),
    [
        ("bert", LENGTHS, ["padding, ", "left 0, 3, 7 of 12: error"]),
        ("bert", INFINITE, ["finite, ", "not finite"]),
        ("bert", ONE_ROW, ["padding, ", "model.onnx refuses"]),
        ("gpt2", GEMMS, ["ONNX Runtime cannot open model.onnx"]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_wrong_fusion_is_undone_and_named(model: str, plant, words: list[str], copied: Exported) -> None:
    folder = copied(model)
    before = {path: sha256(path) for path in folder.rglob("*") if path.is_file()}
    done = optimize(folder, fusions=(plant,))
    assert (done.kept, done.reason, list(done.undone)) == ({}, "", [plant.name])
    for word in words:
        assert word in done.undone[plant.name]
    assert f"undone {plant.name}: " in done.text() and "left as it was" in done.text()
    assert before == {path: sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (ROTARY_INSIDE, ["padding, left 0, 3, 7 of 12: error"]),
        (GROUPED_QUERY, ["cache, ", "batch_size must be 1 when sequence_length > 1 and past context is given"]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_is_right_stays_beside_what_is_wrong(plant, words: list[str], copied: Exported) -> None:
    folder = copied("llama")
    ours = FUSIONS[:4]
    done = optimize(folder, fusions=(*ours, plant))
    assert list(done.kept) == [fusion.name for fusion in ours] and list(done.undone) == [plant.name]
    for word in words:
        assert word in done.undone[plant.name]
    assert read_manifest(folder)["optimized"]["undone"] == done.undone


def test_a_right_fusion_by_another_hand_is_kept(copied: Exported) -> None:
    """The lowest float in place of -inf: the same operator, and every row is finite."""
    done = optimize(copied("bert"), fusions=(LOWEST,))
    assert done.kept == {"lowest-bias": 2} and done.proof is not None and done.proof.proven
