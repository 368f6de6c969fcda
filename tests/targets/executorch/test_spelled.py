"""Operators that ExecuTorch has no kernel for, or one that gives other numbers, against torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional

import trueport
from tests.targets.onnx.test_arithmetic import Both


def whole(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    numbers = (a * 1e3).long() + 2**40 + 1
    sums = numbers.sum(1), numbers.sum((0, 1)), numbers.sum(0, keepdim=True), (numbers % 2**31).int().sum(-1)
    shifts = numbers >> 3, numbers << 2, numbers >> (b.abs() * 5).long(), (a * 9).int() << 2
    far = numbers * 2**20 + 1  # past 2**53
    return *sums, *shifts, far % 3, far % -7, far % ((b.abs() * 9).long() + 1)


def orders(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    ties = (a * 2).round()
    stable = *ties.sort(stable=True), *torch.sort(ties, dim=0, descending=True, stable=True)
    apart = a.sort(dim=0)[0], b.argsort(-1, descending=True), torch.argsort(ties, dim=-1, stable=True)
    return *stable, *apart, torch.sort((b * 99).long())[0]


def searches(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    line, rows = torch.tensor([-1.0, 0.0, 0.0, 1.0]), a.sort(-1)[0]
    x = (b * 2).round()
    several = (
        torch.searchsorted(line, x),
        torch.searchsorted(rows, b, right=True),
        torch.searchsorted(rows, b, side="left"),
    )
    return torch.bucketize(x, line), torch.bucketize(x, line, right=True, out_int32=True), *several


def bins(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    ends = torch.histc((a * 2).round(), 5, -2, 2), torch.histc(a, bins=3, min=-0.7, max=0.9)
    return *ends, torch.histc((b.abs() * 9).long().float(), 7, 0, 6), torch.empty_like(b.t()).fill_(3)


def turns(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Rotary positions in complex numbers."""
    turned = torch.polar(torch.ones_like(b), b) * 1.5
    one, other = torch.view_as_complex(a.reshape(3, 2, 2)), torch.view_as_complex(b.reshape(3, 2, 2))
    products = (
        one * other,
        other.unsqueeze(-1) * one.unsqueeze(1),
        turned * a,
        turned[:, None, :2] * turned[None, 0:3, 0:2].to(a.device),
    )
    return *map(torch.view_as_real, products), torch.view_as_real(one) + a.reshape(3, 2, 2), a * 2


def signs(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    zeros = a * 0
    known = a.masked_fill(b > 0, torch.nan)
    ends = torch.fmax(known, b), torch.fmin(b, known)
    rounds = torch.round(a * 100, decimals=1), torch.round(a * 100, decimals=-1)
    return torch.signbit(zeros), torch.copysign(b, zeros), torch.copysign(b, -1.0), torch.exp2(a), *ends, *rounds


def pads(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    cut = functional.pad(a, (-1, 2)), functional.pad(a, (1, -2, -1, 1), value=3.0), functional.pad(a, (-1, -1))
    resized = functional.interpolate(torch.stack([a, b])[None], scale_factor=(1.7, 0.6), mode="bilinear")
    return *cut, resized, functional.pad(b, (0, 1), value=-torch.inf)


@pytest.mark.slow
@pytest.mark.parametrize("of", [whole, orders, searches, bins, turns, signs, pads])
@pytest.mark.parametrize("dynamic", [None, {"a": (), "b": ()}], ids=["dynamic", "static"])
def test_they_are_torchs(of: Callable[..., object], dynamic: object, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Both(of).eval()
    sample = {"a": torch.randn(3, 4), "b": torch.randn(3, 4)}
    trueport.export(module, tmp_path / "out", to="executorch", inputs=sample, dynamic=dynamic, proof=False)
    given = {name: torch.randn(3, 4) for name in sample}
    found, _ = trueport.load(tmp_path / "out").step(given)
    for place, (got, wanted) in enumerate(zip(found.values(), module(**given), strict=True)):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype), place
        assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-6), (place, got, wanted)
