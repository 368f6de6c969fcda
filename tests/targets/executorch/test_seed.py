"""The pull request that this target grew from: T5 with padding, and what happens where its mask or its scale is lost."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

import trueport
from tests import zoo
from tests.conftest import EXAMPLES, Once
from trueport.errors import ProofError
from trueport.proof.tolerance import MULTIPLE
from trueport.roles import bounded

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("executorch-seed")]
DATES = EXAMPLES / "t5-dates"
PADDED = 512
MONTHS = ("January", "March", "May", "July", "August", "October", "December")
SOURCES = [f"the {day} of {month} {1900 + 7 * day}" for day in (1, 3, 11, 17, 22, 30) for month in MONTHS]


@pytest.fixture(scope="module")
def artefact(once: Once) -> trueport.runtime.TrueportModel:
    pytest.importorskip("executorch")
    options = {"to": "executorch", "max_batch": 6, "max_length": PADDED, "proof": False}
    return trueport.load(once("seed-dates", lambda out: trueport.export(DATES, out, **options)))


@pytest.fixture(scope="module")
def original() -> transformers.PreTrainedModel:
    return transformers.AutoModelForSeq2SeqLM.from_pretrained(DATES).eval()


def padded(texts: list[str], length: int | None = PADDED) -> dict[str, torch.Tensor]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATES)
    how = {"padding": "max_length", "max_length": length} if length else {"padding": True}
    feeds = tokenizer(texts, return_tensors="pt", **how)
    return {name: feeds[name] for name in ("input_ids", "attention_mask")}


def budget(original: transformers.PreTrainedModel, call) -> float:
    """The noise floor of the original on these inputs, times the proof's multiple."""
    with torch.no_grad():
        rough = call(original)
        exact = call(transformers.AutoModelForSeq2SeqLM.from_pretrained(DATES).double().eval())
    return MULTIPLE * float((rough - exact).abs().max())


def test_states_and_logits_under_padding_to_512_are_those_without(artefact, original):
    texts = SOURCES[:5]
    feeds = padded(texts)
    target = torch.tensor([[0, 5, 9, 3]])
    with torch.no_grad():
        encoded = artefact.get_encoder()(**feeds).last_hidden_state
        logits = artefact(**feeds, decoder_input_ids=target.expand(5, -1)).logits
        for row, text in enumerate(texts):
            alone = padded([text], None)
            real = alone["input_ids"].shape[1]
            wanted = original(**alone, decoder_input_ids=target)
            states = wanted.encoder_last_hidden_state[0]
            limit = budget(
                original, lambda m, alone=alone: m(**alone, decoder_input_ids=target).encoder_last_hidden_state
            )
            assert float((encoded[row, :real] - states).abs().max()) <= limit
            limit = budget(original, lambda m, alone=alone: m(**alone, decoder_input_ids=target).logits)
            assert float((logits[row] - wanted.logits[0]).abs().max()) <= limit


@pytest.mark.parametrize("options", [{"do_sample": False}, {"do_sample": True, "top_k": 5}])
def test_tokens_of_all_prompts_are_the_originals(artefact, original, options):
    assert len(SOURCES) >= 40
    for start in range(0, len(SOURCES), 6):
        feeds = padded(SOURCES[start : start + 6])
        tokens = []
        for model in (artefact, original):
            torch.manual_seed(start)
            tokens.append(model.generate(**feeds, max_new_tokens=12, **options).numpy())
        assert np.array_equal(*tokens), SOURCES[start : start + 6]


def failed(tmp_path: Path) -> set[str]:
    """The clauses by which a T5 of one layer falls; what is planted is in no layer."""
    sizes = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1}
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**sizes, decoder_start_token_id=0)).eval()
    zoo.amplify(model, seed=0)
    options = {"tokenizer": None, "max_batch": 3, "max_length": 40, "backend": "portable"}
    with pytest.raises(ProofError) as raised:
        trueport.export(model, tmp_path / "out", to="executorch", **options)
    assert not (tmp_path / "out").exists()
    return {clause.clause for clause in raised.value.proof.failures()}


def test_an_encoder_without_its_mask_fails_by_padding(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    real = bounded.ProjectingEncoderModule.forward

    def forward(self, **inputs):
        # The mask is read and then seen through: everything is real.
        return real(self, **(inputs | {"attention_mask": inputs["attention_mask"] * 0 + 1}))

    monkeypatch.setattr(bounded.ProjectingEncoderModule, "forward", forward)
    found = failed(tmp_path)
    assert {"padding", "inert"} <= found and "shapes" not in found


def test_a_decoder_without_the_scale_fails_by_shapes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    real = bounded.KeptSeq2SeqDecoderModule.forward

    def forward(self, **inputs):
        return {"logits": real(self, **inputs)["logits"] * self.model.config.d_model**0.5}

    monkeypatch.setattr(bounded.KeptSeq2SeqDecoderModule, "forward", forward)
    found = failed(tmp_path)
    assert "shapes" in found and "inert" not in found
