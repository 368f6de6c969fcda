"""Operators that a target lacks, each with the line that calls it."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import trueport


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
