"""Tensors read, written and ordered by places, where torch's ONNX forms were wrong or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import trueport
from tests.targets.onnx.test_arithmetic import Both


def scatters(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    index = (b[:2, :3].abs() * 10).long() % 3
    whole = (b.abs() * 10).long() % 3
    means = [a.scatter_reduce(0, whole, b, "mean", include_self=kept) for kept in (True, False)]
    numbers = (a * 9).long()
    means.append(numbers.scatter_reduce(0, whole, numbers + 5, "mean"))
    return a.scatter(0, index, b), a.scatter_add(0, index, b), a.scatter_reduce(0, index, b, "amax"), *means


def diagonals(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    masked = a.masked_fill(b > 0, -torch.inf)
    stacked = torch.stack([masked, b, a])
    offsets = [masked.diagonal(offset) for offset in (-2, -1, 1, 3)]
    return masked.diagonal(), *offsets, stacked.diagonal(0, 0, 2), stacked.diagonal(1, -1, 1), (a > 0).diagonal()


def orders(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    ties = (a * 2).round() + 0.0
    up, down = ties.sort(stable=True), torch.sort(ties, dim=0, descending=True, stable=True)
    line, rows, x = torch.tensor([-1.0, 0.0, 0.0, 1.0]), a.sort(-1)[0], ties[:, :2]
    left = torch.searchsorted(line, ties), torch.searchsorted(rows, x, side="left", out_int32=True)
    right = torch.searchsorted(line, ties, right=True), torch.searchsorted(ties, b, right=True, sorter=up[1])
    return *up, *down, *left, *right, torch.argsort(ties, dim=-1, stable=True)


def indices(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    short = (b[:, 0].abs() * 10).int() % 3
    bits = (b.abs() * 10).long()
    repeated = a.repeat_interleave(torch.tensor([1, 0, 3]), 0, output_size=4)
    shifts = (a * 100).long() >> (bits % 5), (a * 100).int() << (bits % 5).int()
    return a[short], a.index_put((short,), b), repeated, *shifts, (a > 0) + (b > 0), (a > 0) + b


@pytest.mark.parametrize("of", [scatters, diagonals, orders, indices])
@pytest.mark.parametrize("opset", [18, 23])
def test_places_are_torchs(of: Callable[..., object], opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Both(of).eval()
    sample = {"a": torch.randn(3, 4), "b": torch.randn(3, 4)}
    trueport.export(module, tmp_path / "out", inputs=sample, dynamic={"a": (), "b": ()}, opset=opset, proof=False)
    given = {name: torch.randn(3, 4) for name in sample}
    found, _ = trueport.load(tmp_path / "out").step(given)
    for place, (got, wanted) in enumerate(zip(found.values(), module(**given), strict=True)):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype), place
        assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-6), (place, got, wanted)
