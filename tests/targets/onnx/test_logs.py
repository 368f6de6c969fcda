"""Logarithms of sums of exponentials far from zero, and of nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import trueport
from tests.targets.onnx.test_arithmetic import Both

FAR = torch.tensor([[-torch.inf, -300.0, -torch.inf, -2e4], [90.0, 0.0, -90.0, 1e4], [-1e4, 3.0, -1.0, -torch.inf]])
NEAR = torch.tensor([[0.0, 1.0, -torch.inf, -2e4], [-90.0, 0.5, 90.0, 1e4], [1e4, -1e-3, 1e3, 2.0]])


def sums(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    several = a.logsumexp(1), b.logsumexp((0, 1)), torch.logsumexp(a[:1].T, 0, keepdim=True)
    return torch.logaddexp(a, b), torch.logaddexp2(b, a), *several


def prefixes(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return a.logcumsumexp(1), b.logcumsumexp(0), torch.stack([a, b]).logcumsumexp(1)


def gates(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return functional.logsigmoid(a), functional.binary_cross_entropy_with_logits(b, b.sigmoid(), reduction="none")


@pytest.mark.parametrize("of", [sums, prefixes, gates])
@pytest.mark.parametrize("opset", [17, 23])
def test_they_neither_overflow_nor_vanish(of: Callable[..., object], opset: int, tmp_path: Path) -> None:
    module = Both(of).eval()
    sample = {"a": torch.randn(3, 4), "b": torch.randn(3, 4)}
    trueport.export(module, tmp_path / "out", inputs=sample, opset=opset, proof=False)
    far = {"a": FAR, "b": NEAR.clamp(min=-2e4) if of is gates else NEAR}
    found, _ = trueport.load(tmp_path / "out").step(far)
    for place, (got, wanted) in enumerate(zip(found.values(), module(**far), strict=True)):
        assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-6, equal_nan=True), (place, got, wanted)
