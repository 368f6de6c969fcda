"""Tensors that ExecuTorch programs keep: what is written to a new one stays, an input may be given out under any name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import trueport
from tests.targets.onnx.test_arithmetic import Both


def kept(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    noise = -torch.log(-torch.log(a.sigmoid().clamp(1e-6, 1 - 1e-6)))
    restored = torch.nn.functional.max_unpool1d(*torch.nn.functional.max_pool1d(a, 2, return_indices=True), 2)
    return noise, restored


def negative(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    written, added = a.clone(), b * 2
    written[:, torch.tensor([2, -1])] = b[:, :2]
    added.index_add_(0, torch.tensor([0, 0, 2]), a)
    return written, added, torch.zeros(3, 4).scatter_add(1, torch.tensor([[0, 1, 1, 0]] * 3), a)


def given(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return a + b, a.float(), a[:, :100], b.flatten(0, 0), b.narrow(0, 0, 3), b.to(torch.float32)[:]


@pytest.mark.slow
@pytest.mark.parametrize(("of", "size"), [(kept, (2, 4, 6)), (negative, (3, 4)), (given, (3, 4))])
def test_tensors_are_kept(of: object, size: tuple[int, ...], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Both(of).eval()  # type: ignore[arg-type]
    sample = {"a": torch.randn(size), "b": torch.randn(size)}
    trueport.export(module, tmp_path / "out", to="executorch", inputs=sample, dynamic={"a": (), "b": ()}, proof=False)
    found, _ = trueport.load(tmp_path / "out").step(sample)
    for got, wanted in zip(found.values(), module(**sample), strict=True):
        torch.testing.assert_close(got, wanted)
