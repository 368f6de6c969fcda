"""The range clause: which layer's numbers do not fit into float16, and on which input."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CohereConfig, CohereForCausalLM, GPT2Config, GPT2LMHeadModel

import trueport
from tests import zoo
from trueport.dtypes import converted
from trueport.errors import ProofError
from trueport.proof.asked import NotApplicableError
from trueport.proof.clauses import ranges
from trueport.proof.inputs import Batch, Inputs, Limits
from trueport.proof.reference import Reference

CLAMPED = tuple(f"encoder.block.0.layer.0.SelfAttention.{name}" for name in ("v", "o"))
"""Layers after which T5 clamps; its feed-forward's last layer transformers keeps in float32."""


def asked_of(model: Any, role: str, names: tuple[str, ...]) -> Any:
    inputs = Inputs(model.config, role, 7, Limits(length=64))  # type: ignore[arg-type]
    return SimpleNamespace(own=Reference(model, role, names), inputs=inputs, masked=True)


def larger(name: str, factor: float, *paths: str) -> Any:
    """A zoo model in float32 with larger weights in these layers."""
    model = zoo.build(name)
    with torch.no_grad():
        for path in paths:
            model.get_submodule(path).weight.mul_(factor)  # type: ignore[operator, union-attr]
    return model


def scaled(name: str, path: str, factor: float) -> Any:
    """The same in float16."""
    return converted(larger(name, factor, path), "float16")


def test_the_first_layer_past_the_limit_is_named_with_the_input_that_does_it():
    layer = "encoder.layer.1.intermediate.dense"
    model = scaled("bert", layer, 4e4)
    asked = asked_of(model, "encoder", ("last_hidden_state",))
    (case,) = ranges.ask(asked)
    assert case.failed and case.error is not None and case.error > case.budget == 65504
    assert f"{layer} gives" in case.note and "--dtype float32 or bfloat16" in case.note
    assert case.worst_input is not None
    ids, mask = (np.array(case.worst_input[key]) for key in ("input_ids", "attention_mask"))
    seen = []
    model.get_submodule(layer).register_forward_hook(lambda _m, _a, output: seen.append(output))
    Reference(model, "encoder", ("last_hidden_state",)).forward(Batch(ids, mask))
    assert ids.shape[0] == 1 and torch.isinf(seen[0]).any(), "the input that is named overflows in float16"


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_what_fits_is_held_with_its_largest_place(dtype: str):
    asked = asked_of(converted(zoo.build("llama"), dtype), "decoder", ("logits",))
    (case,) = ranges.ask(asked)
    assert not case.failed and case.error is not None and case.error > 0
    assert "largest where" in case.note


def test_scores_inside_an_attention_are_seen():
    """PyTorch keeps them in float32 and stays finite; ONNX's Attention in float16 gave NaN, and no layer was named."""
    layer = "encoder.layer.1.attention.self"
    model = converted(larger("bert", 300, f"{layer}.query", f"{layer}.key"), "float16")
    (case,) = ranges.ask(asked_of(model, "encoder", ("last_hidden_state",)))
    assert case.failed and case.error is not None and case.error > 65504
    assert f"{layer} scores" in case.note and "its tokens begin" in case.note


def test_the_clamp_of_t5_is_told_and_excused():
    model = converted(larger("t5", 500, *CLAMPED), "float16")
    (case,) = ranges.ask(asked_of(model, "seq2seq", ("logits",)))
    assert not case.failed and f"{CLAMPED[1]} gives" in case.note and "which the original itself clamps" in case.note
    assert case.worst_input is not None


def test_a_layer_that_stays_in_float32_may_be_larger():
    wo = "encoder.block.0.layer.1.DenseReluDense.wo"
    model = scaled("t5", wo, 1e5)
    assert model.get_submodule(wo).weight.dtype == torch.float32, "transformers keeps it so"
    (case,) = ranges.ask(asked_of(model, "seq2seq", ("logits",)))
    assert not case.failed and "largest where" in case.note and wo not in case.note


def test_a_weight_that_the_cast_itself_loses_is_named():
    model = scaled("bert", "encoder.layer.0.output.dense", 1e8)
    (case,) = ranges.ask(asked_of(model, "encoder", ("last_hidden_state",)))
    assert case.failed and case.note == "encoder.layer.0.output.dense.weight is not finite in float16"


def test_float32_has_nothing_to_ask():
    with pytest.raises(NotApplicableError, match="float32"):
        ranges.ask(asked_of(zoo.build("bert"), "encoder", ("last_hidden_state",)))


@pytest.mark.slow
def test_an_export_that_overflows_is_refused_with_the_layer(tmp_path: Path):
    """Its original cannot even sample from its own NaN."""
    layer = "model.layers.1.mlp.down_proj"
    model = larger("llama", 500, "model.layers.1.mlp.up_proj", layer)
    with pytest.raises(ProofError) as raised:
        trueport.export(model, tmp_path / "out", dtype="float16", tokenizer=None)
    found = {clause.clause: clause for clause in raised.value.proof.failures()}  # type: ignore[attr-defined]
    assert f"{layer} gives" in found["range"].reason and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_clamp_of_t5_is_exported_with_float16s_own_limits(tmp_path: Path):
    artifact = trueport.export(larger("t5", 500, *CLAMPED), tmp_path / "out", dtype="float16", tokenizer=None)
    assert artifact.proof is not None
    found = {clause["clause"]: clause for clause in artifact.proof["clauses"]}
    assert "which the original itself clamps" in found["range"]["reason"]
    assert found["finite"]["status"] == found["shapes"]["status"] == "pass"


def far_out() -> Any:
    """A GPT-2 whose token 4321 of 8000, the sum of its embedding with a bias, is past float16's limit."""
    torch.manual_seed(0)
    sizes = {"n_positions": 128, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 1, "eos_token_id": 2}
    config = GPT2Config(vocab_size=8000, tie_word_embeddings=False, activation_function="relu", **sizes)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        model.transformer.wte.weight[4321, 3] = 60000.0
        model.transformer.h[1].mlp.c_proj.bias[3] = 10000.0
    return model


def test_a_token_that_is_hardly_ever_drawn_is_asked_where_it_lies_far_out():
    """The export was proven, and infinite at that token."""
    (case,) = ranges.ask(asked_of(converted(far_out(), "float16"), "decoder", ("logits",)))
    assert case.failed and case.note is not None and "transformer.h.1" in case.note
    assert case.worst_input is not None and 4321 in np.array(case.worst_input["input_ids"])


def test_an_overflow_that_is_caught_excuses_no_other():
    """A relu makes 0 of the first layer's -inf; that was told, and the NaN of another token behind it was not looked for."""
    model = far_out()
    with torch.no_grad():
        first = model.transformer.h[0].mlp.c_fc
        first.bias[5] = -65500.0
        first.weight[:, 5] *= 5000.0
        first.weight[3, 5] = 0.0
    (case,) = ranges.ask(asked_of(converted(model, "float16"), "decoder", ("logits",)))
    assert case.failed and case.note is not None and "transformer.h.1" in case.note
    assert case.worst_input is not None and 4321 in np.array(case.worst_input["input_ids"])


def test_what_the_whole_model_does_to_its_layers_outputs_is_seen():
    """Cohere multiplies what its last layer gives: that layer fits, and the answers do not."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    ids = {"vocab_size": 99, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = CohereForCausalLM(CohereConfig(logit_scale=1e4, **sizes, **ids)).eval()
    zoo.amplify(model, seed=0)
    (case,) = ranges.ask(asked_of(converted(model, "float16"), "decoder", ("logits",)))
    assert case.failed and "the model itself gives" in case.note


def test_an_overflow_among_the_tokens_of_experts_is_asked_of_every_row():
    """They have no rows: only the first of the batch was asked whether it stays finite."""
    model = zoo.build("mixtral")
    asked = asked_of(converted(model, "float16"), "decoder", ("logits",))
    batch = asked.inputs.draw("two", np.ones((2, 4), dtype=np.int64))
    found = ranges._reached(asked.own, [batch])
    flat = [one for place, reached in found.items() if place[0].endswith("act_fn") for one in reached]
    assert flat and all(one.input().size == 2 for one in flat)
