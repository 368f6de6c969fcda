"""What rounding decides in the original itself is not held against an artefact, and hides no fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import trueport
from tests import zoo
from trueport.artifact import read_manifest
from trueport.errors import ProofError
from trueport.proof.rounding import settled
from trueport.verification import judge_own


class Applied(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "function",
    [torch.exp, lambda x: x**16 / (1 + x**16), lambda x: (x * 1000).to(torch.int32), lambda x: (x * 1e6).long()],
    ids=["overflow", "overflow to nothing", "cut", "every one cut"],
)
def test_what_only_float64_tells_is_not_asked(function: Callable[[torch.Tensor], torch.Tensor], tmp_path: Path) -> None:
    torch.manual_seed(0)
    trueport.export(Applied(function).eval(), tmp_path / "out", inputs=(torch.randn(30, 50),), state={})
    assert (tmp_path / "out" / "proof.json").exists()


def chaos(x: torch.Tensor) -> torch.Tensor:
    """Numbers that rounding alone decides."""
    return 30 * torch.sin(x * 1e8)


def lossy(x: torch.Tensor) -> torch.Tensor:
    """ONNX Runtime's Sigmoid is nothing where PyTorch's is 1e-26."""
    return torch.log(torch.sigmoid(-x).clamp(min=1e-30))


def test_what_rounding_decides_hides_no_fault(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sample = torch.rand(3, 5) * 60
    trueport.export(Applied(chaos).eval(), tmp_path / "out", inputs=(sample,), state={})
    with pytest.raises(ProofError, match="shapes fail"):
        both = Applied(lambda x: torch.cat([chaos(x), lossy(x)], -1)).eval()
        trueport.export(both, tmp_path / "both", inputs=(sample,), state={})


def test_only_what_the_original_gives_too_is_taken() -> None:
    """Finite in float64 and infinite in float32; an integer on either side of a cut, among eleven."""
    truth = {"f": np.array([1.0, 1e60, 1e60, 2.0]), "i": np.array([7] * 11)}
    own = {"f": np.array([1.0, np.inf, np.inf, 2.0]), "i": np.array([8] + [7] * 10)}
    got = {"f": np.array([1.0, np.inf, -np.inf, np.inf]), "i": np.array([8] + [7] * 9 + [6])}
    found = settled(truth, own, got)
    assert found["f"].tolist() == [1.0, np.inf, 1e60, 2.0]
    assert found["i"].tolist() == [8] + [7] * 10


def test_where_rounding_decides_most_of_it_the_truth_stays() -> None:
    truth, own, got = ({"i": np.array(values)} for values in ([3, 1, 2], [1, 3, 2], [9, 9, 2]))
    assert settled(truth, own, got)["i"].tolist() == [3, 1, 2]


@pytest.mark.slow
def test_answers_that_noise_drowns_prove_nothing(tmp_path: Path) -> None:
    """In bfloat16 rounding decides all that this model answers: its graph with other weights failed in one case alone."""
    model, other = _loud(0), _loud(1)
    trueport.export(model, tmp_path / "out", tokenizer=None, proof=False)
    proof = judge_own(
        tmp_path / "out", read_manifest(tmp_path / "out"), other, clauses=["shapes", "padding", "cache"], seed=None,
        progress=lambda clause: None,
    )  # fmt: skip
    assert {clause.status for clause in proof.clauses} == {"fail"}
    assert all("rounding alone decides it" in clause.reason for clause in proof.clauses)


def _loud(seed: int) -> Any:
    entry = next(entry for entry in zoo.ENTRIES if entry.name == "llama")
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**entry.config)).eval()
    with torch.no_grad():
        zoo.amplify(model, seed=seed, gain=5.0)
    return model.to(torch.bfloat16)
