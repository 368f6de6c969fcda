"""What fusers get wrong about masks: planted, the proof undoes it and says where; ours is right there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import trueport
from tests import zoo
from tests.conftest import Exported, Once
from tests.graphs.fusions.planted import LOWEST as LOWEST_FLOAT
from tests.graphs.fusions.planted import (
    filled_with,
    grouped_query,
    lengths_for_a_mask,
    one_row_masks,
    planted,
    rank_three_gemms,
)
from trueport.artifact import read_manifest, sha256
from trueport.graphs.fusions import fusions_for
from trueport.optimization import optimize

pytestmark = pytest.mark.slow

ROTARY_INSIDE = planted("rotary-inside", grouped_query(rotary=True))
GROUPED_QUERY = planted("grouped-query", grouped_query())
INFINITE_GROUPS = planted("grouped-query-infinite", grouped_query(fill=float("-inf")))
LENGTHS = planted("lengths", lengths_for_a_mask)
INFINITE = planted("infinite-bias", filled_with(float("-inf")))
LOWEST = planted("lowest-bias", filled_with(LOWEST_FLOAT))
ONE_ROW = planted("one-row-masks", one_row_masks)
GEMMS = planted("rank-three-gemms", rank_three_gemms)


@pytest.fixture
def wide_llama(once: Once) -> Path:
    """Heads of 16 numbers: the rotary of GroupQueryAttention takes no fewer."""

    def write(out: Path) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(**dict(zoo._BY_NAME["llama"].config) | {"head_dim": 16})
        model = LlamaForCausalLM(config).eval()
        zoo.amplify(model, seed=0)
        trueport.export(model, out, tokenizer=None)

    return once("llama-wide", write)


@pytest.mark.parametrize(
    ("model", "plant", "words"),
    [
        ("bert", LENGTHS, ["padding, ", "left 0, 3, 7 of 12: error"]),
        ("bert", INFINITE, ["finite, a row wholly masked: error"]),
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
    assert ".trueport-" not in done.undone[plant.name], "the place of the trial is no reason"
    assert f"undone {plant.name}: " in done.text() and "left as it was" in done.text()
    assert before == {path: sha256(path) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (ROTARY_INSIDE, ["padding, holes in 12: error", "chunks 8+1+1", "generate, greedy, 3 prompts"]),
        (GROUPED_QUERY, ["cache, ", "batch_size must be 1 when sequence_length > 1 and past context is given"]),
        (INFINITE_GROUPS, ["cache, chunks 10 x 1: not finite"]),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_what_is_right_stays_beside_what_is_wrong(plant, words: list[str], wide_llama: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(wide_llama, tmp_path / "llama"))
    # The plants read an Attention with its scale, over what the rotary gives; no product of this folder is cut into heads.
    ours = [fusion for fusion in fusions_for("cpu") if fusion.name not in ("scaled-queries", "heads-at-once")]
    done = optimize(folder, fusions=(*ours, plant))
    assert list(done.kept) == [fusion.name for fusion in ours] and list(done.undone) == [plant.name]
    for word in words:
        assert word in done.undone[plant.name]
    assert read_manifest(folder)["optimized"]["undone"] == done.undone


def test_a_right_fusion_by_another_hand_is_kept(copied: Exported) -> None:
    """The lowest float in place of -inf: the same operator, and every row is finite."""
    done = optimize(copied("bert"), fusions=(LOWEST,))
    assert done.kept == {"lowest-bias": 2} and done.proof is not None and done.proof.proven
