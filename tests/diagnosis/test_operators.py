"""Operators that a target lacks, each with the line that calls it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import trueport
from trueport.diagnosis.mends import MENDS, Mend
from trueport.diagnosis.operators import lacking


class Lacks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        return torch.special.bessel_j0(y) + x


@pytest.mark.parametrize("target", ["onnx", pytest.param("executorch", marks=pytest.mark.slow)])
def test_an_operator_that_the_target_lacks_is_named_with_its_line(target: str) -> None:
    found = trueport.diagnose(Lacks().eval(), inputs=(torch.randn(4, 4),), to=target)
    lines, first = inspect.getsourcelines(Lacks)
    place = f"{Path(__file__).name}:{first + next(n for n, line in enumerate(lines) if 'bessel' in line)}"
    (finding,) = (each for each in found.examinations[0].findings if each.kind == "operator")  # type: ignore[union-attr]
    assert "bessel_j0" in finding.problem and place in finding.where and finding.mend
    assert not found.exportable  # type: ignore[union-attr]


class Written(nn.Module):
    """One expression of the table, over x, y, k and n."""

    def __init__(self, code: str) -> None:
        super().__init__()
        self.code = compile(code, "<expression>", "eval")

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = eval(self.code, {"torch": torch, "x": x, "y": y, "k": 3, "n": x.shape[-1]})
        return value


X, Y = torch.randn(2, 5, 4), torch.randn(2, 5, 4).sort(-1).values
EACH = pytest.mark.parametrize("mend", MENDS, ids=lambda mend: mend.operator)


@EACH
def test_a_mend_computes_what_the_operator_does(mend: Mend) -> None:
    y = Y[0] if "[0]" in mend.call else Y
    torch.testing.assert_close(Written(mend.write)(X, y), Written(mend.call)(X, y), check_dtype=False)


@pytest.mark.slow
@EACH
def test_both_targets_take_the_mend_and_one_that_lacks_the_operator_says_it(mend: Mend) -> None:
    args = (X, Y[0] if "[0]" in mend.call else Y)
    said = []
    for target in ("onnx", "executorch"):
        assert not lacking(torch.export.export(Written(mend.write), args), target)
        said += [finding.mend for finding in lacking(torch.export.export(Written(mend.call), args), target)]
    assert any(mend.write in words for words in said)
