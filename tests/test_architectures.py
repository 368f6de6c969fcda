"""Every architecture of the zoo passes the whole proof; docs/coverage.md is the same table for readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import transformers

import trueport
from tests import zoo
from tests.conftest import Exported


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_it_is_proven(exported: Exported, name: str) -> None:
    proof = json.loads((exported(name) / "proof.json").read_text())
    assert proof["verdict"] == "proven"
    asked = {clause["clause"]: clause["status"] for clause in proof["clauses"]}
    assert "fail" not in asked.values()
    role = {entry.name: entry.role for entry in zoo.ENTRIES}[name]
    if role != "encoder":
        assert asked["causal"] == asked["cache"] == asked["generate"] == "pass"


HEADS = [
    ("bert", "SequenceClassification"),
    ("bert", "TokenClassification"),
    ("bert", "MaskedLM"),
    ("roberta", "SequenceClassification"),
    ("distilbert", "TokenClassification"),
    ("electra", "MaskedLM"),
    ("gpt2", "SequenceClassification"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "head"), HEADS)
def test_heads_are_proven(name: str, head: str, tmp_path: Path) -> None:
    artifact = trueport.export(zoo.build(name, head=head), tmp_path / "out", tokenizer=None)
    assert artifact.verdict == "proven"
    outputs = {tensor["name"] for tensor in artifact.manifest["components"]["model"]["outputs"]}
    assert outputs == {"logits"}


@pytest.mark.slow
def test_a_head_with_two_outputs_is_proven(tmp_path: Path) -> None:
    entry = next(entry for entry in zoo.ENTRIES if entry.name == "bert")
    torch.manual_seed(0)
    config = transformers.BertConfig(**{**entry.config, "num_labels": 2})
    model = transformers.BertForQuestionAnswering(config).eval()
    artifact = trueport.export(model, tmp_path / "out", tokenizer=None)
    assert artifact.verdict == "proven"
    outputs = {tensor["name"] for tensor in artifact.manifest["components"]["model"]["outputs"]}
    assert outputs == {"start_logits", "end_logits"}


@pytest.mark.slow
def test_a_model_that_does_not_run_in_float64_is_proven(tmp_path: Path) -> None:
    """XGLM puts the lowest number of its scores' dtype into a float32."""
    sizes = {"d_model": 32, "num_layers": 2, "attention_heads": 4, "ffn_dim": 64, "max_position_embeddings": 64}
    torch.manual_seed(0)
    model = transformers.XGLMForCausalLM(transformers.XGLMConfig(vocab_size=99, **sizes)).eval()
    with torch.no_grad():
        zoo.amplify(model, seed=0)
    artifact = trueport.export(model, tmp_path / "out", tokenizer=None)
    assert artifact.verdict == "proven"


@pytest.mark.slow
def test_stages_with_heads_of_their_own_are_proven(tmp_path: Path) -> None:
    """Swin's config has a list of heads: the proof's count of its memory ended in a traceback."""
    sizes = {
        "image_size": 16,
        "patch_size": 2,
        "embed_dim": 16,
        "depths": [2, 1],
        "num_heads": [2, 4],
        "window_size": 4,
    }
    torch.manual_seed(0)
    model = transformers.SwinModel(transformers.SwinConfig(**sizes)).eval()
    with torch.no_grad():
        zoo.amplify(model, seed=0)
    assert trueport.export(model, tmp_path / "out", tokenizer=None).verdict == "proven"


@pytest.mark.slow
def test_experts_in_bfloat16_are_proven(tmp_path: Path) -> None:
    """transformers calls another operator for them there, torch's own."""
    artifact = trueport.export(zoo.build("mixtral", amplify=1.0), tmp_path / "out", tokenizer=None, dtype="bfloat16")
    assert artifact.verdict == "proven"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "kind", "window"), [("mistral", "Mistral", 2), ("gemma2", "Gemma2", 1)])
def test_windows_of_one_and_two_tokens_are_proven(name: str, kind: str, window: int, tmp_path: Path) -> None:
    """The cache that tells the shapes holds one token of two; a hole as wide as the window leaves a query without keys."""
    entry = next(entry for entry in zoo.ENTRIES if entry.name == name)
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**{**entry.config, "sliding_window": window})
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        zoo.amplify(model, seed=0)
    artifact = trueport.export(model, tmp_path / "out", tokenizer=None)
    assert artifact.verdict == "proven"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["llama", "bert"])
def test_other_dtypes_are_proven(name: str, dtype: str, tmp_path: Path) -> None:
    artifact = trueport.export(zoo.build(name), tmp_path / "out", dtype=dtype, tokenizer=None)
    assert artifact.verdict == "proven"
    types = {tensor["dtype"] for tensor in artifact.manifest["components"]["model"]["outputs"]}
    assert types == {dtype}


@pytest.mark.slow
@pytest.mark.parametrize("opset", [18, 21, 24])
def test_other_opsets_are_proven(opset: int, tmp_path: Path) -> None:
    import onnx

    artifact = trueport.export(zoo.build("llama"), tmp_path / "out", opset=opset, tokenizer=None)
    assert artifact.verdict == "proven"
    model = onnx.load(tmp_path / "out" / "onnx" / "model.onnx")
    assert [entry.version for entry in model.opset_import if entry.domain == ""] == [opset]
