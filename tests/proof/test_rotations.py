"""Rotary embeddings whose factors change with the length: long Phi-3 reads all tokens anew past its original length."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import trueport
from tests import zoo
from trueport.errors import TrueportError

LIMIT = 16
LONG = (2.0, 2.5, 3.0, 4.0)


def phi3(long: tuple[float, ...] = LONG) -> transformers.PreTrainedModel:
    """A tiny one that rotates by ``long`` past 16 tokens."""
    entry = next(entry for entry in zoo.ENTRIES if entry.name == "phi3")
    rope: dict[str, Any] = {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": list(long)}
    rope |= {"original_max_position_embeddings": LIMIT, "rope_theta": 10000.0}
    sizes = {"sliding_window": None, "max_position_embeddings": 64, "original_max_position_embeddings": LIMIT}
    torch.manual_seed(0)
    model = transformers.Phi3ForCausalLM(
        transformers.Phi3Config(**{**entry.config, **sizes}, rope_parameters=rope)
    ).eval()
    zoo.amplify(model, seed=0)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("phi3") / "out"
    trueport.export(phi3(), out, tokenizer=None)
    return out


@pytest.mark.slow
def test_it_is_proven_against_the_originals_own_steps(folder: Path) -> None:
    proof = json.loads((folder / "proof.json").read_text())
    clauses = {clause["clause"]: clause for clause in proof["clauses"]}
    assert proof["verdict"] == "proven"
    assert "own steps are not its whole" in clauses["window"]["reason"]
    assert "greedy across 16 tokens" in [case["case"] for case in clauses["generate"]["cases"]]
    assert "Past 16 tokens" in (folder / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("lengths", [(14, 9), (5, 3), (16, 16), (20, 17)])
def test_generation_reads_anew_where_the_original_does(folder: Path, lengths: tuple[int, ...], beams: int) -> None:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 99, (len(lengths), max(lengths)), generator=generator)
    mask = torch.stack([(torch.arange(max(lengths)) >= max(lengths) - length).long() for length in lengths])
    options = {"max_new_tokens": 14, "num_beams": beams, "do_sample": False}
    wanted = phi3().generate(input_ids=ids, attention_mask=mask, **options)
    got = trueport.load(folder).generate(input_ids=ids, attention_mask=mask, **options)
    assert torch.equal(torch.as_tensor(got), wanted)


@pytest.mark.slow
def test_it_is_proven_without_its_original_too(folder: Path) -> None:
    assert trueport.verify(folder).proven


@pytest.mark.slow
def test_other_factors_past_the_limit_are_found(folder: Path) -> None:
    failed = {clause.clause for clause in trueport.verify(folder, against=phi3((2.0, 2.5, 3.0, 4.5))).failures()}
    assert "window" in failed


@pytest.mark.slow
def test_a_folder_that_keeps_its_cache_past_the_limit_is_found(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    manifest = json.loads((other / "trueport.json").read_text())
    assert manifest["source"].pop("reread_past") == LIMIT
    (other / "trueport.json").write_text(json.dumps(manifest))
    failed = trueport.verify(other, against=phi3(), clauses=["generate"]).failures()
    assert [clause.clause for clause in failed] == ["files", "generate"] and "across 16" in failed[1].reason


@pytest.mark.slow
def test_a_limit_that_is_no_number_is_one_line(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "other")
    manifest = json.loads((other / "trueport.json").read_text())
    manifest["source"]["reread_past"] = "many"
    (other / "trueport.json").write_text(json.dumps(manifest))
    with pytest.raises(TrueportError, match="reread_past is no whole number"):
        trueport.load(other)
