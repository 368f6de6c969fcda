"""Weights that the artefact and the reference of a proof in little memory read alike are held against other readers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trueport
from tests import zoo
from trueport.errors import TrueportError
from trueport.source import Source, load_source
from trueport.weights import held, lazy, linked
from trueport.weights.mapped import Maps

SMALL = "100MB"


def _source(folder: Path, name: str, dtype: torch.dtype = torch.float32) -> Source:
    zoo.build(name).to(dtype).save_pretrained(folder, max_shard_size="40KB")
    return load_source(folder, tokenizer=None, link=True)


def _held(source: Source, scratch: Path, most: float = 1e9) -> list[str]:
    return held.hold(source.mapped(Maps(scratch)), source.model, most)


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_oss", "t5", "bert", "lfm2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_every_weight_is_what_transformers_makes_of_it(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    assert _held(_source(tmp_path / "checkpoint", name, dtype), tmp_path) == []


def _rows_reversed(patch: pytest.MonkeyPatch) -> None:
    row = lazy._row
    patch.setattr(lazy, "_row", lambda tensor, index: row(tensor, tensor.shape[0] - 1 - index))


def _other_bytes(patch: pytest.MonkeyPatch) -> None:
    leaf = lazy.leaf

    def wrong(span: lazy.Span) -> lazy.LazyTensor:
        before = span.nbytes if span.name.endswith("layers.1.mlp.gate_proj.weight") else 0
        return leaf(replace(span, offset=span.offset - before))

    patch.setattr(linked, "leaf", wrong)


def _not_rounded(patch: pytest.MonkeyPatch) -> None:
    """A float32 checkpoint under bfloat16 whose values are cut off in place of rounded."""
    pieces = lazy.LazyTensor.pieces

    def cut(self: lazy.LazyTensor) -> Any:
        for piece in pieces(self):
            yield torch.zeros_like(piece) if piece.ndim == 1 else piece

    patch.setattr(lazy.LazyTensor, "pieces", cut)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype", "plant"),
    [("mixtral", None, _rows_reversed), ("llama", None, _other_bytes), ("llama", "bfloat16", _not_rounded)],
)
def test_a_fault_that_artefact_and_reference_share_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, dtype: str | None, plant: Callable[[Any], None]
) -> None:
    zoo.build(name).save_pretrained(tmp_path / "checkpoint")
    options: dict[str, Any] = {"tokenizer": None, "weights": "copy", "proof_memory": SMALL, "dtype": dtype}
    plant(monkeypatch)
    with pytest.raises(TrueportError, match=r"not found in the checkpoint as transformers loads it.*--proof-memory"):
        trueport.export(tmp_path / "checkpoint", tmp_path / "out", **options)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint"]


def test_what_is_too_large_to_be_held_is_named(tmp_path: Path) -> None:
    source = _source(tmp_path / "checkpoint", "mixtral")
    experts = [name for name, _ in source.model.named_parameters() if "experts" in name]
    assert experts and _held(source, tmp_path, most=1000) == experts
