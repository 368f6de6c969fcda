"""Every kind of model is proven through the ExecuTorch runtime."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import trueport
from tests import zoo
from tests.conftest import Exported
from trueport.errors import LoweringError

ROLES = {entry.name: entry.role for entry in zoo.ENTRIES}
NAMES = (
    "bert", "modernbert", "distilbert", "mpnet", "vit",
    "llama", "qwen3", "gpt2", "gemma3_text", "mistral",
    "mixtral", "gpt_oss", "jamba", "lfm2", "mamba", "mamba2", "falcon_h1", "nemotron_h", "qwen3_5",
    "bart", "marian", "whisper",
)  # fmt: skip
"""T5 itself is proven as t5-dates, in test_session.py."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_proven(program: Exported, name: str) -> None:
    proof = json.loads((program(name) / "proof.json").read_text())
    assert proof["verdict"] == "proven"
    clauses = {clause["clause"]: clause for clause in proof["clauses"]}
    if ROLES[name] != "encoder":
        assert {clauses[key]["status"] for key in ("causal", "cache", "generate")} == {"pass"}
    if ROLES[name] == "seq2seq":
        assert [case["case"] for case in clauses["generate"]["cases"]][:1] == ["greedy, 40 prompts"]
    if name in ("gemma3_text", "mistral"):
        assert clauses["window"]["status"] == "pass"
    # The bound itself is asked.
    assert name == "vit" or any("64" in case["case"] for case in clauses["shapes"]["cases"])


@pytest.mark.slow
def test_a_program_for_one_row_generates(tmp_path: Path) -> None:
    """Its batch is no dimension any more, in the encoder's states neither; a layer on each side does for that."""
    entry = next(entry for entry in zoo.ENTRIES if entry.name == "t5")
    torch.manual_seed(0)
    original = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**{**entry.config, "num_layers": 1})
    ).eval()
    zoo.amplify(original, seed=0)
    trueport.export(original, tmp_path / "out", to="executorch", tokenizer=None, max_batch=1, max_length=32)
    ids = torch.tensor([[7, 21, 40, 9]])
    wanted = original.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(trueport.load(tmp_path / "out").generate(ids, max_new_tokens=6, do_sample=False), wanted)


@torch.library.custom_op("trueport_tests::halved", mutates_args=())
def halved(x: torch.Tensor) -> torch.Tensor:
    return x / 2


halved.register_fake(torch.empty_like)


class Halved(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return halved(x) + 1


@pytest.mark.slow
def test_an_operator_that_only_others_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match=r"no kernel for 'trueport_tests::halved'.*\n?.*--to onnx"):
        trueport.export(Halved().eval(), tmp_path / "out", to="executorch", inputs={"x": torch.randn(2, 3)})
    assert not (tmp_path / "out").exists()
