"""Integers in ExecuTorch programs: powers past 2**53 and remainders of negative numbers are torch's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import trueport
from tests.targets.onnx.test_arithmetic import BASES, BY, POWERS, WHOLE, Both, comparisons, integers


def powers(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    small = a.int() % 7
    by_numbers = torch.pow(a, 39), torch.pow(a, 1), torch.pow(a, 0), torch.square(a), torch.pow(a > 0, 3)
    return torch.pow(a, b), torch.pow(3, b.abs()), torch.pow(small, 13), small ** (b > 0).int(), *by_numbers


@pytest.mark.slow
@pytest.mark.parametrize(
    ("of", "first", "second"),
    [(powers, BASES, POWERS), (integers, WHOLE, BY), (comparisons, WHOLE, BY)],
    ids=["powers", "integers", "comparisons"],
)
def test_integers_are_torchs(of: object, first: torch.Tensor, second: torch.Tensor, tmp_path: Path) -> None:
    module = Both(of).eval()  # type: ignore[arg-type]
    sample = {"a": torch.randint(1, 9, (3, 4)), "b": torch.randint(1, 9, (3, 4))}
    trueport.export(module, tmp_path / "out", to="executorch", inputs=sample, proof=False)
    found, _ = trueport.load(tmp_path / "out").step({"a": first, "b": second})
    for place, (got, wanted) in enumerate(zip(found.values(), module(first, second), strict=True)):
        assert torch.equal(got, wanted), (place, got, wanted)
