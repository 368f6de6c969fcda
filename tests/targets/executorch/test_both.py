"""Both targets in one folder: each is proven, and the caller chooses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers

import trueport
from tests.conftest import EXAMPLES, Once
from trueport.errors import ArtifactError, TrueportError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("executorch-both")]
DATES = EXAMPLES / "t5-dates"


@pytest.fixture
def both(once: Once) -> Path:
    pytest.importorskip("executorch")
    bounds = {"max_batch": 2, "max_length": 32}
    return once("both-dates", lambda out: trueport.export(DATES, out, to="onnx,executorch", **bounds))


def test_each_target_is_proven_clause_by_clause(both: Path):
    artifact = trueport.verify(both)
    assert artifact.proven
    components = {clause.component.split(":")[0] for clause in artifact.clauses} - {"folder"}
    assert components == {"onnx", "executorch"}


@pytest.mark.parametrize("runtime", [None, "onnx", "executorch"])
def test_the_caller_chooses_the_runtime(both: Path, runtime: str | None):
    model = trueport.load(both, runtime=runtime)
    suffix = ".pte" if runtime == "executorch" else ".onnx"
    assert {session.path.suffix for session in model.sessions.values()} == {suffix}
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATES)
    feeds = tokenizer(["the 3rd of May 1998", "July 14, 2021"], return_tensors="pt", padding=True)
    original = transformers.AutoModelForSeq2SeqLM.from_pretrained(DATES)
    feeds = {name: feeds[name] for name in ("input_ids", "attention_mask")}
    assert torch.equal(model.generate(**feeds, max_new_tokens=12), original.generate(**feeds, max_new_tokens=12))


def test_what_is_not_there_cannot_be_chosen(both: Path):
    with pytest.raises(ArtifactError, match="Choose from executorch, onnx"):
        trueport.load(both, runtime="abacus")
    with pytest.raises(TrueportError, match="names a target twice"):
        trueport.export(DATES, both.parent / "other", to="onnx,onnx")
    with pytest.raises(TrueportError, match="no target abacus"):
        trueport.export(DATES, both.parent / "other", to="onnx,abacus")
