"""Quantised programs: held to their gate, exact against themselves, and refused where that is not so."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import trueport
from tests import zoo
from tests.conftest import EXAMPLES, Exported
from trueport.errors import ArtifactError, ProofError, TrueportError
from trueport.proof.clauses.quality import POSITIONS, divergence
from trueport.proof.quantised import Quantised, quantised_of, tolerance
from trueport.targets.executorch import quantize
from trueport.targets.executorch.delegated import quantised_layers
from trueport.targets.executorch.quantize import GATES, KINDS, quantized

pytest.importorskip("executorch")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"to": "executorch", "quantize": "int3"}, "There is no quantisation int3. Choose from 8da8w, 8da4w, int8."),
        ({"to": "onnx", "quantize": "8da8w"}, "There is no quantisation 8da8w for the target onnx. Choose from int8, "),
        ({"to": "onnx,executorch", "quantize": "int8"}, "--quantize int8 is for one target at a time."),
        ({"to": "executorch", "quantize": "int8", "backend": "portable"}, "runs on XNNPACK's kernels"),
    ],
)
def test_what_cannot_be_is_refused_before_the_model_is_loaded(options: dict[str, Any], words: str, tmp_path: Path):
    with pytest.raises(TrueportError) as raised:
        trueport.export(tmp_path / "no such model", tmp_path / "out", **options)
    assert words in str(raised.value) and "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_each_kind_has_its_gate():
    assert set(GATES) == set(KINDS)
    assert POSITIONS >= 64


@pytest.mark.parametrize("kind", ["8da8w", "8da4w"])
def test_the_original_and_its_embedding_stay_in_float(kind: str):
    model = zoo.build("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    made, found = quantized(model, kind)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert type(made.get_input_embeddings().weight.data) is torch.Tensor
    assert torch.equal(made.get_input_embeddings().weight, model.get_input_embeddings().weight)
    assert set(found.layers).isdisjoint(found.left_in_float)
    for name, module in made.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert (type(module.weight.data) is not torch.Tensor) == (name in found.layers)


def test_a_width_that_no_group_divides_is_left_in_float_and_said():
    model = torch.nn.Module()
    model.first, model.second = torch.nn.Linear(64, 40), torch.nn.Linear(40, 8)
    model.table = torch.nn.Embedding(9, 64)
    model.bend = torch.nn.Conv1d(4, 4, 3)
    _, found = quantized(model, "8da4w")  # type: ignore[arg-type]
    assert found.layers == ("first",)
    assert found.left_in_float == {
        "second": "its width of 40 is no multiple of the group of 32",
        "bend": "Conv1d is no linear layer",
    }
    with pytest.raises(TrueportError, match="fits no layer of Module: its width of 40"):
        del model.first
        quantized(model, "8da4w")  # type: ignore[arg-type]


def test_what_is_not_float32_is_refused():
    with pytest.raises(TrueportError, match="starts from float32, not float16"):
        quantized(zoo.build("llama").half(), "8da8w")


def test_the_linear_layers_of_gpt2_are_found():
    model = zoo.build("gpt2")
    made, found = quantized(model, "int8")
    assert any("c_attn" in name for name in found.layers)
    ids = torch.arange(12).reshape(2, 6)
    with torch.no_grad():
        assert torch.allclose(made(ids).logits, model(ids).logits, atol=1e-5)


def test_divergence_is_that_of_torch():
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, 7, 11)) * 5
    log = torch.log_softmax(torch.from_numpy(np.stack([first, second])), dim=-1)
    wanted = torch.nn.functional.kl_div(log[1], log[0], reduction="none", log_target=True).sum(-1)
    assert np.allclose(divergence(first, second), wanted.numpy())
    assert np.allclose(divergence(first, first), 0)


def test_a_manifest_cannot_choose_its_gate_or_its_tolerance():
    def found(**layers: int) -> Callable[[], Counter[str]]:
        return lambda: Counter(layers)

    eight = found(**{"8da8w": 16})
    with pytest.raises(ArtifactError, match="there is no gate"):
        quantised_of({"quantize": {"kind": "anything", "layers": []}}, GATES, eight)
    for broken in ("8da8w", {"kind": "8da8w"}, {"layers": 3}, []):
        with pytest.raises(ArtifactError, match="names no kind and layers"):
            quantised_of({"quantize": broken}, GATES, eight)
    assert quantised_of({}, GATES, eight) is None
    many = {"quantize": {"kind": "8da8w", "layers": ["x"] * 10**5, "gate": {"agreement": 0}}}
    assert quantised_of(many, GATES, eight) == Quantised("8da8w", 16, GATES["8da8w"])
    assert quantised_of(many, GATES, found()) is None
    with pytest.raises(ArtifactError, match="says quantize '8da8w', and the files hold layers in 8da4w"):
        quantised_of(many, GATES, found(**{"8da8w": 3, "8da4w": 1}))
    assert tolerance(Quantised("8da8w", 16, GATES["8da8w"])).budget("logits", 1.0) == pytest.approx(4 / 256)


@pytest.mark.slow
def test_a_float_program_holds_no_quantised_layer(program: Exported, tmp_path: Path):
    """Its manifest may say so: it is held to the float tolerance all the same."""
    folder = Path(shutil.copytree(program("llama"), tmp_path / "llama"))
    assert not quantised_layers(folder / "executorch" / "model.pte")
    manifest = json.loads((folder / "trueport.json").read_text())
    manifest["quantize"] = {"kind": "8da4w", "layers": ["lm_head"] * 10_000}
    (folder / "trueport.json").write_text(json.dumps(manifest))
    proof = trueport.verify(folder, clauses=["causal"])
    assert "quantised" not in json.dumps(proof.to_json()["tolerance"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_programs_quantised_layers_are_counted_in_its_bytes(kind: str, tmp_path: Path):
    out = tmp_path / "out"
    # Several methods, and one.
    model = zoo.build("t5", num_layers=1) if kind == "int8" else zoo.build("llama", num_hidden_layers=1)
    options = {"to": "executorch", "max_batch": 2, "max_length": 16, "proof": False, "tokenizer": None}
    trueport.export(model, out, quantize=kind, **options)
    layers = json.loads((out / "trueport.json").read_text())["quantize"]["layers"]
    path = out / "executorch" / "model.pte"
    assert quantised_layers(path) == Counter({kind: len(layers)})
    content = path.read_bytes()
    for end in (8, 100, len(content) // 8):
        (tmp_path / "short.pte").write_bytes(content[:end])
        with pytest.raises(ArtifactError, match="cut short or broken"):
            quantised_layers(tmp_path / "short.pte")


def _export(name: str, kind: str, out: Path, **options: Any) -> trueport.Artifact:
    return trueport.export(
        EXAMPLES / name, out, to="executorch", quantize=kind, max_batch=4, max_length=64, **options
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    # Each model and each kind once: the figures of all nine are in docs/quantisation.md, and each takes long to lower.
    [("bert-sentiment", "8da8w"), ("llama-tales", "8da4w"), ("t5-dates", "int8")],
)
def test_the_examples_are_held_to_their_gate(name: str, kind: str, tmp_path: Path):
    out = tmp_path / "out"
    if (name, kind) in FALLS_THROUGH:
        with pytest.raises(ProofError) as raised:
            _export(name, kind, out)
        assert [clause.clause for clause in raised.value.proof.failures()] == ["quality"]  # type: ignore[attr-defined]
        assert not out.exists()
        return
    _export(name, kind, out)
    manifest, proof = (json.loads((out / file).read_text()) for file in ("trueport.json", "proof.json"))
    assert manifest["quantize"]["kind"] == kind and len(manifest["quantize"]["layers"]) > 10
    assert manifest["quantize"]["left_in_float"] == {}
    clauses = {clause["clause"]: clause for clause in proof["clauses"]}
    assert proof["verdict"] == "proven"
    figures = {case["case"].rpartition(": ")[2]: case for case in clauses["quality"]["cases"]}
    gate = GATES[kind]
    assert figures["top-1 disagreement"]["budget"] == pytest.approx(1 - gate.agreement)
    assert figures["mean KL divergence"]["budget"] == gate.divergence
    report = (out / "report.html").read_text()
    assert "top-1 agreement" in report and f"{gate.divergence:g} or less" in report
    if name != "bert-sentiment":
        assert "tokens are the original" in clauses["generate"]["cases"][0]["note"]
        assert clauses["cache"]["status"] == "pass"


FALLS_THROUGH = {("llama-tales", "8da4w"), ("t5-dates", "8da4w")}
"""Examples that a kind of quantisation does not serve: 64 wide, they have no weights to spare (docs/quantisation.md)."""


@pytest.mark.slow
def test_a_quantisation_that_is_too_coarse_falls_through(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    real = quantize._quantize_weights

    def coarse(model: torch.nn.Module, kind: str, layers: tuple[str, ...]) -> None:
        """Weights of three values before they are quantised."""
        with torch.no_grad():
            for name in layers:
                weight = model.get_submodule(name).weight
                step = weight.abs().max()
                weight.copy_((weight / step).round() * step)  # type: ignore[operator, arg-type]
        real(model, kind, layers)

    monkeypatch.setattr(quantize, "_quantize_weights", coarse)
    with pytest.raises(ProofError) as raised:
        _export("llama-tales", "8da8w", tmp_path / "out")
    failed = [clause.clause for clause in raised.value.proof.failures()]  # type: ignore[attr-defined]
    assert failed == ["quality"]
    assert not (tmp_path / "out").exists()
