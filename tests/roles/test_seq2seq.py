"""Encoder-decoders: what the model's own encoder returns is what its decoder is given."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    AutoProcessor,
    BertConfig,
    DonutSwinConfig,
    EncoderDecoderConfig,
    EncoderDecoderModel,
    FSMTConfig,
    FSMTForConditionalGeneration,
    GPT2Config,
    MBartConfig,
    NllbMoeConfig,
    NllbMoeForConditionalGeneration,
    PreTrainedTokenizerFast,
    Speech2TextConfig,
    Speech2TextForConditionalGeneration,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
    TrOCRProcessor,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
    ViTImageProcessorPil,
)

import trueport
from tests import zoo
from trueport.artifact import read_manifest
from trueport.errors import TrueportError
from trueport.roles import components
from trueport.roles.component import sample
from trueport.runtime.text import stream


def nllb_moe() -> torch.nn.Module:
    return NllbMoeForConditionalGeneration(
        NllbMoeConfig(
            vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, max_position_embeddings=64,
            num_experts=3, expert_capacity=4, encoder_sparse_step=2, decoder_sparse_step=2, decoder_start_token_id=2,
        )
    ).eval()  # fmt: skip


def switch() -> torch.nn.Module:
    return SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, num_sparse_encoder_layers=1,
            num_sparse_decoder_layers=1, num_experts=3, expert_capacity=64, decoder_start_token_id=0,
        )
    ).eval()  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("make", [nllb_moe, switch])
@torch.no_grad()
def test_an_encoder_that_tells_more_than_its_states(make: object, tmp_path: Path) -> None:
    """Their decoders read the routers' answers too, from the class that the encoder returns."""
    torch.manual_seed(0)
    model = make()  # type: ignore[operator]
    encoder, decoder = components(model)
    ids, target = torch.randint(3, 99, (2, 5)), torch.randint(3, 99, (2, 3))
    states = encoder.module(input_ids=ids, attention_mask=torch.ones_like(ids))["last_hidden_state"]
    empty = {"past_sequence_length": 0, "past_encoder_sequence_length": 0, "encoder_sequence_length": 5}
    feeds = sample(decoder.interface, {"batch_size": 2, "sequence_length": 3} | empty)
    found = decoder.module(**feeds | {"input_ids": target, "encoder_hidden_states": states})["logits"]
    assert torch.allclose(found, model(input_ids=ids, decoder_input_ids=target).logits, atol=1e-5)
    with pytest.raises(
        TrueportError, match=r"torch\.export refused at .*modeling_"
    ):  # which experts run, tokens decide
        trueport.export(model, tmp_path / "out", tokenizer=None)


def test_an_encoder_that_is_a_plain_module_is_refused_in_a_sentence(tmp_path: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 37, "decoder_ffn_dim": 37}
    heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
    model = FSMTForConditionalGeneration(FSMTConfig(src_vocab_size=99, tgt_vocab_size=99, **sizes, **heads)).eval()
    with pytest.raises(TrueportError, match="FSMTEncoder of a FSMTForConditionalGeneration is a plain module"):
        trueport.export(model, tmp_path / "out", tokenizer=None)


def test_speech_of_any_length_is_refused_in_a_sentence(tmp_path: Path) -> None:
    """It was a traceback: Speech2Text's encoder has no conv1."""
    config = Speech2TextConfig(
        vocab_size=99, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=37, decoder_ffn_dim=37,
        encoder_attention_heads=4, decoder_attention_heads=4, max_source_positions=64, max_target_positions=64,
        input_feat_per_channel=8, conv_channels=16,
    )  # fmt: skip
    with pytest.raises(TrueportError, match=r"Speech2TextEncoder .* takes features of any length"):
        trueport.export(Speech2TextForConditionalGeneration(config).eval(), tmp_path / "out", tokenizer=None)


@pytest.mark.slow
@pytest.mark.parametrize("width", [32, 48])
def test_two_models_of_their_own_vocabularies_become_one(width: int, tmp_path: Path) -> None:
    """BERT reads, GPT-2 writes: two configs, widths that may need a projection, tokens that one alone knows."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 40}
    config = EncoderDecoderConfig.from_encoder_decoder_configs(
        BertConfig(vocab_size=50, hidden_size=width, **sizes),
        GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, add_cross_attention=True),
    )
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    model = EncoderDecoderModel(config).eval()
    zoo.amplify(model, seed=0)
    trueport.export(model, tmp_path / "out", tokenizer=None)
    assert read_manifest(tmp_path / "out")["proof"]["verdict"] == "proven"


def writes_about(seen: Any, written: Any) -> VisionEncoderDecoderModel:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(seen, written)
    config.decoder_start_token_id, config.pad_token_id, config.eos_token_id = 2, 1, 3
    model = VisionEncoderDecoderModel(config).eval()
    zoo.amplify(model, seed=0)
    return model


def vit_gpt2() -> VisionEncoderDecoderModel:
    """GPT-2 makes a mask of ones for the states that it is given, of another width than its own."""
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 16}
    written = GPT2Config(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, add_cross_attention=True)
    return writes_about(ViTConfig(hidden_size=48, patch_size=8, **sizes), written)


def donut() -> VisionEncoderDecoderModel:
    """Wide images in shifted windows, and MBart's decoder."""
    seen = DonutSwinConfig(
        embed_dim=16, depths=[1, 1], num_heads=[2, 4], image_size=[32, 48], patch_size=4, window_size=2
    )
    written = MBartConfig(
        vocab_size=99, d_model=32, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, is_decoder=True,
        decoder_attention_heads=4, decoder_ffn_dim=64, max_position_embeddings=64, add_cross_attention=True,
        is_encoder_decoder=False,
    )  # fmt: skip
    return writes_about(seen, written)


def processor() -> TrOCRProcessor:
    words = Tokenizer(models.WordLevel({f"w{index}": index for index in range(99)}, unk_token="w0"))
    images = ViTImageProcessorPil(size={"height": 16, "width": 16})
    return TrOCRProcessor(
        image_processor=images, tokenizer=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w1")
    )


IMAGES = [
    (vit_gpt2, {"to": "onnx,executorch", "max_batch": 4, "max_length": 24}),
    (donut, {"optimize": "cpu", "caches": "in-place"}),
]
"""Models, and how they are exported."""


@pytest.mark.slow
@pytest.mark.parametrize(("make", "options"), IMAGES)
def test_what_is_written_about_an_image_is_the_originals(
    make: Callable[[], VisionEncoderDecoderModel], options: dict[str, Any], tmp_path: Path
) -> None:
    model, folder = make(), tmp_path / "checkpoint"
    model.save_pretrained(folder)
    processor().save_pretrained(folder)
    trueport.export(folder, tmp_path / "out", **options)
    assert read_manifest(tmp_path / "out")["proof"]["verdict"] == "proven"
    height, width = model.encoder.config.image_size if make is donut else (16, 16)
    pixels = torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(0))
    asked = {
        "pixel_values": pixels,
        "max_new_tokens": 9,
        "num_beams": 2,
        "decoder_input_ids": torch.tensor([[2, 7], [2, 8]]),
    }
    for runtime in options.get("to", "onnx").split(","):
        found = trueport.load(tmp_path / "out", runtime=runtime).generate(**asked)
        assert torch.equal(found, model.generate(**asked)), runtime
    with pytest.raises(
        TrueportError, match=r"reads pixel_values, no text\. Call trueport\.load\(\.\.\.\)\.generate\(pixel_"
    ):
        stream(tmp_path / "out", "a text", {})
    kept = AutoProcessor.from_pretrained(tmp_path / "out")
    assert kept.tokenizer.decode([5]) == "w5" and kept.image_processor.size["height"] == 16


def test_a_programs_source_of_one_length_has_it_whatever_bounds_the_target() -> None:
    """Whisper's 1500 states did not fit into the 512 tokens that a program is planned for, and its proof failed."""
    from trueport.roles.bounded import Bounds, components

    encoder, decoder = components(zoo.build("whisper", encoder_layers=1, decoder_layers=1), Bounds(batch=2, length=8))
    (given,) = {t.shape for t in decoder.interface.inputs if ".encoder." in t.name}
    (made,) = {t.shape for t in encoder.interface.outputs if ".encoder." in t.name}
    assert given == made == ("batch_size", 4, 16, 8)
    bounds = {dimension.name: dimension.maximum for dimension in decoder.interface.dimensions}
    assert bounds == {"batch_size": 2, "sequence_length": 8, "past_sequence_length": 7}
