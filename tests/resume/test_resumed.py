"""Exports that were interrupted, and went on: no component twice, the same bytes."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import trueport
from tests import zoo
from tests.conftest import EXAMPLES, Exported
from trueport.artifact import MANIFEST
from trueport.errors import ArtifactError
from trueport.graphs.stamping.shorten import captured
from trueport.roles import components
from trueport.source import load_source
from trueport.targets.onnx.kept import from_bytes, to_bytes
from trueport.targets.onnx.lower import Graph, lower
from trueport.weights.linked import fake_mode_of


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Phases:
    """What an export tells; at one phase it is interrupted."""

    def __init__(self, until: str = "", error: BaseException | None = None) -> None:
        self.until, self.error = until, error or KeyboardInterrupt()
        self.seen: list[str] = []

    def __call__(self, phase: str) -> None:
        self.seen.append(phase.partition(" of ")[0])
        if phase == self.until:
            raise self.error


def run(out: Path, phases: Phases, **options: Any) -> None:
    trueport.export(EXAMPLES / "t5-dates", out, proof=False, resume=True, progress=phases, **options)


@pytest.mark.slow
def test_no_component_is_captured_twice_and_the_bytes_are_the_same(
    tmp_path: Path, cache: Path, exported: Exported
) -> None:
    """Interrupted behind the encoder, and again, the disk full, behind the decoder."""
    out = tmp_path / "out"
    first, full = Phases("capture decoder"), Phases("assets", OSError(28, "full"))
    with pytest.raises(KeyboardInterrupt) as caught:
        run(out, first)
    assert caught.value.kept == "Finished, and kept for the same command: encoder."  # type: ignore[attr-defined]
    assert os.listdir(tmp_path) == ["cache"] and len(os.listdir(cache)) == 1
    with pytest.raises(ArtifactError, match="No space left"):
        run(out, full)
    assert "capture encoder" in first.seen
    assert "capture encoder" not in full.seen and "capture decoder" in full.seen
    assert len(os.listdir(cache)) == 2
    for other in ({"opset": 22}, {"resume": False}):  # nothing of it is taken
        with pytest.raises(KeyboardInterrupt):
            trueport.export(EXAMPLES / "t5-dates", out, progress=Phases("capture encoder"), **{"resume": True} | other)
    last = Phases()
    run(out, last)
    taken = [f"capture {name}: taken from the interrupted export" for name in ("encoder", "decoder")]
    assert last.seen == ["load", *taken, "weights", "assets", "hash"]
    assert os.listdir(cache) == []
    resumed, plain = (json.loads((folder / MANIFEST).read_text()) for folder in (out, exported("t5-dates")))
    others = {name for name, entry in plain["files"].items() if resumed["files"].get(name) != entry}
    assert others == {"README.md", "proof.json", "report.html"}
    written = ("files", "proof")
    assert {k: v for k, v in resumed.items() if k not in written} == {
        k: v for k, v in plain.items() if k not in written
    }


def lowered(name: str, folder: Path, dtype: torch.dtype, **sizes: int) -> tuple[Graph, Any]:
    model = zoo.build(name, **sizes) if sizes else zoo.build(name)
    model.to(dtype).save_pretrained(folder)
    source = load_source(folder, tokenizer=None, link=True)
    with fake_mode_of(source.model):
        (component,) = components(source.model)
    return lower(captured(component, source.model.config, lambda line: None, stamp=True)), component


@pytest.mark.slow
def test_experts_that_are_fused_and_widened_come_back(tmp_path: Path) -> None:
    """Weights that no range of the file is: they are made of the checkpoint anew."""
    graph, component = lowered("mixtral", tmp_path, torch.bfloat16)
    content = to_bytes(graph)
    assert content is not None
    again = from_bytes(content, component)
    assert again is not None and again.interface == graph.interface and again.weights == graph.weights
    assert to_bytes(again) == content
    found = again.model.graph.initializers
    assert any(getattr(value.const_value, "span", 0) is None for value in found.values())
    for name, value in graph.model.graph.initializers.items():
        assert value.const_value is not None and found[name].const_value is not None
        assert value.const_value.tobytes() == found[name].const_value.tobytes(), name  # type: ignore[union-attr]


@pytest.mark.slow
def test_a_graph_of_other_weights_is_not_taken(tmp_path: Path) -> None:
    graph, component = lowered("distilbert", tmp_path, torch.float32)
    content = to_bytes(graph)
    assert content is not None and from_bytes(content, component) is not None
    assert len(content) < 64_000 < (tmp_path / "model.safetensors").stat().st_size
    inner = component.module.get_submodule("model")
    linear = next(module for module in inner.modules() if isinstance(module, torch.nn.Linear))
    bias, linear.bias = linear.bias, None
    assert from_bytes(content, component) is None, "a parameter that is not there"
    linear.bias = bias
    linear.weight, weight = inner.embeddings.word_embeddings.weight, linear.weight
    assert from_bytes(content, component) is None, "a parameter of another shape"
    linear.weight = weight
    assert from_bytes(content, component) is not None
