"""Proofs in bounded memory: the weights streamed, faults still caught, and what was left out said in words."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import trueport
from tests import zoo
from tests.conftest import Exported
from tests.proof.test_planted_faults import Edit, failed, mask_of_ones, no_window, positions_from_zero
from trueport.artifact import read_manifest
from trueport.errors import TrueportError
from trueport.proof.clauses import window
from trueport.proof.memory import Memory, TooLargeError, memory_bytes, plan
from trueport.proof.report import gaps
from trueport.proof.result import NOT_APPLICABLE
from trueport.proof.run import asked_of
from trueport.verification import judge_own
from trueport.weights import streamed

SMALL = "100MB"
"""Less than any process has: the weights have to be streamed."""


@pytest.mark.parametrize(
    ("given", "size"),
    [(None, None), (7, 7), ("4GB", 4 * 10**9), ("1.5 gib", 3 * 2**29), ("512MiB", 2**29), ("10kb", 10_000)],
)
def test_amounts(given: Any, size: int | None) -> None:
    assert memory_bytes(given) == size


@pytest.mark.parametrize("given", ["4 GBit", "GB", "-1GB", "0", "much", "1e9", "", "9" * 400 + "GB"])
def test_no_amounts(given: str) -> None:
    with pytest.raises(TrueportError, match="amount of memory"):
        memory_bytes(given)


def test_a_small_model_is_copied_and_a_large_one_is_not(tmp_path: Path) -> None:
    with torch.device("meta"):
        large = torch.nn.Linear(2**20, 2**20)
    assert not plan(None, zoo.build("llama"), tmp_path).streamed
    assert plan(None, large, tmp_path).streamed and plan(SMALL, zoo.build("llama"), tmp_path).streamed
    assert plan(None, large, tmp_path, loaded=False).needed > plan(None, large, tmp_path).needed + 2**42


def _streamed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the models that are streamed from now on."""
    seen: list[int] = []
    made = streamed.StreamedTensor.__init__

    def counted(self: Any, stored: torch.Tensor, dtype: torch.dtype) -> None:
        seen.append(stored.nbytes)
        made(self, stored, dtype)

    monkeypatch.setattr(streamed.StreamedTensor, "__init__", counted)
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "plant", "caught"),
    [
        ("gpt2", None, set()),
        ("gpt2", positions_from_zero, {"padding", "cache", "generate", "shapes"}),
        ("mistral", no_window, {"window", "cache", "padding", "shapes", "generate"}),
        ("bert", mask_of_ones, {"padding", "inert"}),
    ],
)
def test_planted_faults_are_caught_in_little_memory(
    name: str, plant: Any, caught: set[str], exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(exported(name), tmp_path / name))
    if plant is not None:
        edit = Edit(folder / "onnx/model.onnx")
        plant(edit)
        edit.save()
    seen = _streamed(monkeypatch)
    model = zoo.build(name)
    proof = judge_own(
        folder, read_manifest(folder), model, clauses=None, seed=None, progress=lambda clause: None,
        memory=plan(SMALL, model, folder),
    )  # fmt: skip
    assert seen and (failed(proof) <= caught and bool(failed(proof)) == bool(caught))
    whole = judge_own(folder, read_manifest(folder), model, clauses=None, seed=None, progress=lambda clause: None)
    assert failed(proof) == failed(whole) and not whole.notes
    assert [len(clause.cases) for clause in proof.clauses] == [len(clause.cases) for clause in whole.clauses]


@pytest.mark.slow
def test_an_export_in_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a checkpoint: nothing is loaded, and the proof, the report and the card say how it was made."""
    zoo.build("llama").to(torch.bfloat16).save_pretrained(tmp_path / "checkpoint")
    monkeypatch.setattr("trueport.source._load", lambda plan: pytest.fail("the weights were loaded"))
    options: dict[str, Any] = {"weights": "link", "tokenizer": None, "proof_memory": SMALL}
    artifact = trueport.export(tmp_path / "checkpoint", tmp_path / "out", **options)
    assert artifact.verdict == "proven"
    told = json.loads((tmp_path / "out" / "proof.json").read_text())["notes"]
    assert "cast where they are read" in told[0] and "memory='map'" in told[1]
    assert "a float64 copy of them takes" in (tmp_path / "out" / "report.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint", "out"}
    found = trueport.verify(tmp_path / "out", against=tmp_path / "checkpoint", proof_memory=SMALL)
    assert found.proven and found.notes[:2] == tuple(told[:2])


def test_weights_that_were_not_held_are_said() -> None:
    told = Memory(limit=1, needed=2, unheld=["layers.0.experts.up_proj", "layers.1.experts.up_proj"]).words()
    assert any(
        "2 weights that transformers makes of several tensors, such as layers.0.experts.up_proj" in line
        for line in told
    )
    assert not any("of several tensors" in line for line in Memory(limit=1, needed=2).words())


@pytest.mark.slow
def test_what_was_left_out_is_said_and_not_counted(exported: Exported) -> None:
    folder, model = exported("mistral"), zoo.build("mistral")
    memory = Memory(limit=10**12)
    options: dict[str, Any] = {"clauses": ["shapes", "window"], "seed": None, "progress": lambda clause: None}
    whole = judge_own(folder, read_manifest(folder), model, memory=memory, **options)
    tight = judge_own(folder, read_manifest(folder), model, memory=Memory(limit=600_000), **options)
    shapes, slid = tight.clauses
    assert tight.proven and shapes.left_out and not whole.clauses[0].left_out
    assert len(shapes.cases) + len(shapes.left_out) == len(whole.clauses[0].cases)
    assert "left out" in shapes.reason and "--proof-memory" not in shapes.reason
    told = tight.to_json()
    assert all(f"Not asked: shapes, {words}" in told["notes"] for words in shapes.left_out)
    assert any("Not asked: shapes" in sentence for sentence in gaps(told))
    assert slid.status == NOT_APPLICABLE or slid.cases


@pytest.mark.slow
def test_a_window_is_asked_with_less_where_all_of_it_is_too_much(exported: Exported) -> None:
    model = zoo.build("mistral")
    sessions = trueport.load(exported("mistral")).sessions
    asked = asked_of(sessions, "decoder", model.config, model, None, "float32", 10)  # type: ignore[arg-type]
    for limit, tokens in (
        (10**6, "21 tokens past 8"),
        (200_000, "11 tokens past 8"),
        (150_000, "11 tokens past 8, one row"),
    ):
        cases = window.ask(replace(asked, memory=Memory(limit)))
        told = [case.case for case in cases if not case.left_out]
        assert told[0] == tokens and len(told) == 2 and not any(case.failed for case in cases)
        assert [case.case for case in cases if case.left_out][:1] == ([] if limit == 10**6 else ["21 tokens past 8"])


@pytest.mark.slow
def test_a_memory_that_holds_nearly_nothing_is_refused(exported: Exported) -> None:
    folder, model = exported("llama"), zoo.build("llama")
    with pytest.raises(TooLargeError, match="proof memory of 10"):
        judge_own(
            folder, read_manifest(folder), model, clauses=["shapes"], seed=None, progress=lambda clause: None,
            memory=Memory(limit=10_000),
        )  # fmt: skip


def test_weights_that_are_not_finite_in_float64_need_a_copy() -> None:
    tight, wide = Memory(limit=1000, needed=2000), Memory(limit=10**9, needed=2 * 10**9)
    with pytest.raises(TrueportError, match="Give a larger --proof-memory"):
        tight.copy("why", zoo.build("llama"))
    wide.copy("why", zoo.build("llama"))


@pytest.mark.slow
def test_a_module_is_asked_as_much_as_fits(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 50)).eval()
    trueport.export(module, tmp_path / "out", inputs=(torch.randn(3, 7, 4),), proof=False)
    manifest = read_manifest(tmp_path / "out")
    options: dict[str, Any] = {"clauses": ["shapes"], "seed": None, "progress": lambda clause: None}
    (whole,) = judge_own(tmp_path / "out", manifest, module, memory=Memory(10**9, 2 * 10**9), **options).clauses  # type: ignore[arg-type]
    (tight,) = judge_own(tmp_path / "out", manifest, module, memory=Memory(200_000), **options).clauses  # type: ignore[arg-type]
    assert tight.left_out and tight.status == whole.status == "pass"
    assert len(tight.left_out) + len(tight.cases) == len(whole.cases)


@pytest.mark.slow
def test_a_model_that_cannot_be_streamed_is_copied_where_that_fits(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        raise RuntimeError("no kernel for it")

    folder, model = exported("llama"), zoo.build("llama")
    monkeypatch.setattr(streamed, "cast", refused)
    options: dict[str, Any] = {"clauses": ["shapes"], "seed": None, "progress": lambda clause: None}
    proof = judge_own(folder, read_manifest(folder), model, memory=plan(SMALL, model, folder), **options)
    assert proof.proven and "no kernel for it" in proof.notes[0] and "a float64 copy was made" in proof.notes[0]
    with pytest.raises(
        TrueportError, match="no kernel for it where its weights are streamed, and needs a float64 copy"
    ):
        judge_own(folder, read_manifest(folder), model, memory=plan(10**5, model, folder), **options)
