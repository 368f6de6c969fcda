"""Families of transformers that torch.export refuses, for a line that reads a value."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import trueport

SIZES: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
    "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 1, "num_heads": 4, "local_radius": 7,
    "decoder_start_token_id": 0,
}  # fmt: skip
LED: dict[str, Any] = {key: value for key, value in SIZES.items() if key != "max_position_embeddings"} | {
    "max_encoder_position_embeddings": 64, "max_decoder_position_embeddings": 64, "attention_window": [8],
}  # fmt: skip
CLAMPED = ("Bart", "PLBart", "Marian", "Mvp", "BlenderbotSmall", "LED", "LongT5")
FAST = ("Bart",)


def built(family: str) -> Any:
    sizes = {"LED": LED, "LongT5": T5}.get(family, SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = getattr(transformers, f"{family}Config")(**sizes)
        return getattr(transformers, f"{family}Model")(config).eval().half()


@pytest.mark.parametrize("family", [pytest.param(f, marks=[] if f in FAST else pytest.mark.slow) for f in CLAMPED])
@torch.no_grad()
def test_the_float16_clamp_is_taken_when_it_must_be(family: str) -> None:
    model = built(family)
    ids = torch.randint(5, 95, (2, 16), generator=torch.Generator().manual_seed(0))
    inputs = {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "decoder_input_ids": ids[:, :5],
        "use_cache": False,
    }
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(model, (), inputs)
    with trueport.exportable(model, inputs=inputs) as context:
        program = torch.export.export(model, (), inputs)
    sites = [site for rewrite in context.report.rewrites for site in rewrite.sites]
    assert any(f"modeling_{family.lower().replace('blenderbots', 'blenderbot_s')}.py" in site for site in sites)
    assert any(node.target is torch.ops.higher_order.cond for node in program.graph.nodes)
    for overflow in (False, True):
        if overflow:  # the feed-forward layer's output leaves float16: the clamp must bring it back
            for name, parameter in model.named_parameters():
                if name.endswith(("encoder.layers.0.fc2.bias", "encoder.block.0.layer.1.DenseReluDense.wo.weight")):
                    parameter.fill_(60000)
        wanted = model(**inputs).last_hidden_state
        module = program.module()
        module.load_state_dict(
            {name: value for name, value in model.state_dict().items() if name in module.state_dict()}
        )
        got = module(**inputs).last_hidden_state
        torch.testing.assert_close(got, wanted, rtol=2e-2, atol=2e-2, equal_nan=True)


@torch.no_grad()
def test_without_inputs_the_models_own_dummies_serve() -> None:
    model = built("Bart")
    with trueport.exportable(model) as context:
        assert any("modeling_bart.py" in rewrite.file for rewrite in context.report.rewrites)


@torch.no_grad()
def test_models_that_read_no_value_are_left_alone() -> None:
    from tests import zoo

    for name in ("bert", "llama", "t5"):
        with trueport.exportable(zoo.build(name)) as context:
            assert context.report.rewrites == []
