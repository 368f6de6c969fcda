"""Recurrent states in a program's buffers: zeros at the beginning, and no way back but to read again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import trueport
from tests import zoo
from tests.conftest import Exported
from tests.targets.executorch.conftest import BATCH, LENGTH
from trueport.interface import Dimension, Interface, Tensor
from trueport.targets.executorch.memory import _kept_share

pytest.importorskip("executorch")


@pytest.fixture
def folder(program: Exported) -> Path:
    """Both kinds of states in every layer, beside keys and values."""
    return program("falcon_h1")


def ids(batch: int, length: int) -> torch.Tensor:
    return torch.randint(3, 99, (batch, length), generator=torch.Generator().manual_seed(batch + length))


def inputs(tokens: torch.Tensor, past: int = 0) -> list[torch.Tensor]:
    """Of falcon_h1's program, in its order, for tokens behind a past."""
    batch, new = tokens.shape
    return [
        tokens.contiguous(),
        torch.ones(batch, past + new, dtype=torch.long),
        torch.arange(past, past + new).repeat(batch, 1),
    ]


@pytest.mark.slow
def test_without_a_past_nothing_of_an_earlier_run_is_left(folder: Path) -> None:
    """Through the bare runtime, as in a program of the user's own."""
    from executorch.runtime import Runtime

    original, tokens = zoo.build("falcon_h1"), ids(2, 7)
    names = [
        tensor["name"] for tensor in json.loads((folder / "trueport.json").read_text())["components"]["model"]["inputs"]
    ]
    assert names == ["input_ids", "attention_mask", "position_ids"]
    loaded = Runtime.get().load_program(folder / "executorch/model.pte")
    method = loaded.load_method("forward")
    with torch.no_grad():
        wanted = original(tokens).logits
    for _ in range(2):
        torch.testing.assert_close(method.execute(inputs(tokens))[0], wanted, rtol=1e-3, atol=1e-3)
        method.execute(inputs(ids(BATCH, 9)))
    first = method.execute(inputs(tokens[:, :4]))[0]
    rest = method.execute(inputs(tokens[:, 4:], past=4))[0]
    torch.testing.assert_close(torch.cat([first, rest], 1), wanted, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_a_state_from_before_reads_all_again(folder: Path) -> None:
    original, model, tokens = zoo.build("falcon_h1"), trueport.load(folder), ids(2, 9)
    other = torch.cat([tokens[:, :5], ids(2, 3)], 1)
    with torch.no_grad():
        wanted, turned = original(other).logits[:, -3:], original(other[[1, 0]]).logits[:, -3:]
    _, five = model.step(dict(zip(("input_ids", "attention_mask", "position_ids"), inputs(tokens[:, :5]), strict=True)))
    names = ("input_ids", "attention_mask", "position_ids")
    model.step(dict(zip(names, inputs(tokens[:, 5:], past=5), strict=True)), five)
    outputs, _ = model.step(dict(zip(names, inputs(other[:, 5:], past=5), strict=True)), five)
    torch.testing.assert_close(torch.as_tensor(outputs["logits"]), wanted, rtol=1e-3, atol=1e-3)
    outputs, _ = model.step(dict(zip(names, inputs(other[[1, 0], 5:], past=5), strict=True)), five.take([1, 0]))
    torch.testing.assert_close(torch.as_tensor(outputs["logits"]), turned, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_cache_clause_carries_a_state_into_a_long_chunk(folder: Path) -> None:
    proof = json.loads((folder / "proof.json").read_text())
    cases = next(clause["cases"] for clause in proof["clauses"] if clause["clause"] == "cache")
    assert f"chunks 5+{LENGTH - 5}" in [case["case"] for case in cases]


def test_a_shorter_past_saves_nothing_of_a_state() -> None:
    rows = tuple(Tensor(f"past_key_values.0.{name}", "float32", shape) for name, shape in
                 (("key", (4, 2, 64, 8)), ("value", (4, 2, 64, 8)), ("conv_state", (4, 32, 3))))  # fmt: skip
    interface = Interface((), (), (Dimension("batch_size", 1, 4),), kept=rows)
    keys, states = 2 * 4 * 2 * 64 * 8 * 4, 4 * 32 * 3 * 4
    assert _kept_share(interface, "past_sequence_length") == keys // 2
    assert _kept_share(interface, "batch_size") == (keys + states) // 2


@pytest.mark.slow
def test_states_are_calibrated_away(tmp_path: Path) -> None:
    """What calibration leaves in the buffers is not exported; the proof would see it."""
    bounds = {"max_batch": 3, "max_length": LENGTH // 2}
    trueport.export(zoo.build("mamba2"), tmp_path / "out", to="executorch", quantize="int8", tokenizer=None, **bounds)
    assert json.loads((tmp_path / "out/proof.json").read_text())["verdict"] == "proven"
