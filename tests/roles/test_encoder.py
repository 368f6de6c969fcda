"""Encoders: what they are traced over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import trueport
from tests import zoo
from trueport.artifact import read_manifest
from trueport.errors import CaptureError
from trueport.roles import components


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


SPECTROGRAMS = {
    "AST": ({"patch_size": 4, "frequency_stride": 3, "time_stride": 3, "max_length": 24, "hidden_size": 32,
             "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64}, (24, 16)),
    "Whisper": ({"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 4, "encoder_ffn_dim": 64,
                 "decoder_layers": 1, "max_source_positions": 8, "vocab_size": 9, "pad_token_id": 0}, (16, 16)),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECTROGRAMS)
def test_a_spectrogram_of_one_shape_is_classified(name: str, tmp_path: Path) -> None:
    """As what reads features it was refused where it writes nothing."""
    sizes, shape = SPECTROGRAMS[name]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**sizes, num_mel_bins=16, num_labels=3)
    model = getattr(transformers, f"{name}ForAudioClassification")(config).eval()
    zoo.amplify(model, seed=0)
    artifact = trueport.export(model, tmp_path / "out", tokenizer=None)
    assert artifact.verdict == "proven" and artifact.manifest["source"]["task"] == "audio-classification"
    (given,) = artifact.manifest["components"]["model"]["inputs"]
    assert (given["name"], given["shape"]) == (model.main_input_name, ["batch_size", *shape])


def test_features_of_any_length_are_refused() -> None:
    config = transformers.Wav2Vec2BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    with pytest.raises(CaptureError, match="Wav2Vec2BertModel reads features of a shape that its config does not tell"):
        components(transformers.Wav2Vec2BertModel(config).eval())


def test_samples_in_channels_are_refused() -> None:
    """EnCodec takes (batch, channels, samples), whatever their number."""
    model = transformers.EncodecModel(transformers.EncodecConfig(num_filters=2, hidden_size=8, codebook_size=4)).eval()
    with pytest.raises(CaptureError, match="EncodecModel does not run over input_values of 1 to 557056 numbers itself"):
        components(model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ResNet", "Segformer"])
def test_a_config_without_a_size_of_images_is_told_what_to_write(name: str, tmp_path: Path) -> None:
    """The message named num_channels too, which was there, and no way on."""
    sizes = {
        "ResNet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "Segformer": {"hidden_sizes": [8, 8, 8, 16], "depths": [1] * 4, "num_attention_heads": [1, 1, 1, 2]},
    }[name]
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForImageClassification")(
        getattr(transformers, f"{name}Config")(**sizes)
    ).eval()
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(CaptureError, match=r'names no image_size,.*"image_size": \[224, 224\]') as caught:
        trueport.export(tmp_path / "model", tmp_path / "out", tokenizer=None)
    assert "num_channels" not in str(caught.value)
    config = tmp_path / "model" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"image_size": [64, 96]}))
    artifact = trueport.export(tmp_path / "model", tmp_path / "out", tokenizer=None)
    assert artifact.verdict == "proven"
    shape = artifact.manifest["components"]["model"]["inputs"][0]["shape"]
    assert shape == ["batch_size", 3, 64, 96]


VIT = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "image_size": 16, "patch_size": 8}


def finds() -> Any:
    config = transformers.YolosConfig(**VIT | {"image_size": [16, 24]}, num_hidden_layers=2, num_detection_tokens=3)
    return transformers.YolosForObjectDetection(config)


def parts() -> Any:
    config = transformers.SegformerConfig(
        depths=[1, 1], num_encoder_blocks=2, sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, image_size=32,
    )  # fmt: skip
    return transformers.SegformerForSemanticSegmentation(config)


def measures() -> Any:
    config = transformers.DPTConfig(
        **VIT, num_hidden_layers=4, backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[8] * 4, fusion_hidden_size=8
    )
    return transformers.DPTForDepthEstimation(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "task", "outputs"),
    [
        (finds, "object-detection", {"logits", "pred_boxes", "last_hidden_state"}),
        (parts, "semantic-segmentation", {"logits"}),
        (measures, "depth-estimation", {"predicted_depth"}),
    ],
)
def test_what_is_told_of_an_image_besides_its_class(
    make: Callable[[], Any], task: str, outputs: set[str], tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model = make().eval()
    zoo.amplify(model, seed=0)
    model.save_pretrained(tmp_path / "checkpoint")
    trueport.export(tmp_path / "checkpoint", tmp_path / "out", tokenizer=None)
    manifest = read_manifest(tmp_path / "out")
    assert (manifest["source"]["task"], manifest["proof"]["verdict"]) == (task, "proven")
    assert {tensor["name"] for tensor in manifest["components"]["model"]["outputs"]} == outputs
