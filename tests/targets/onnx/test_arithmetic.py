"""Arithmetic at places that drawn floats do not meet: the runtime's answers are torch's there too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import trueport
from trueport.graphs.loading import check

FLOATS = torch.tensor([[1.0, -1.0, 2.0, -2.0], [0.3, -0.3, 0.0, -0.0], [3.0, 1.2, 0.7, 100.0]])
DIVISORS = torch.tensor([[0.2, 0.2, -0.2, 0.1], [0.1, -0.1, 0.5, 0.5], [0.1, 0.4, 0.1, 0.3]])
WHOLE = torch.tensor([[-7, -1, 0, 1], [2, 3, 7, 100], [2**24 + 1, 2**31 + 7, 10**12 + 1, -(10**12) - 3]])
BY = torch.tensor([[2, 3, -2, 7], [-3, 5, 10, -7], [10, 3, 7, 10]])
AXES = torch.tensor([[-0.0, 0.0, -1.0, 1.0], [-2.0, 2.0, -1.0, -1.0], [-0.0, 0.0, 1.0, 2.0]])
BASES = torch.tensor([[3, 7, -3, 2], [1, -1, 0, 5], [31, 10, -7, 1]])
POWERS = torch.tensor([[33, 20, 39, 62], [0, -3, -2, -1], [90, 18, 3, 200]])


class Both(torch.nn.Module):
    """A module of a function of two tensors."""

    def __init__(self, of: Callable[[torch.Tensor, torch.Tensor], object]) -> None:
        super().__init__()
        self.of = of

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> object:
        return self.of(a, b)


def floats(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    modes = [torch.div(a, b, rounding_mode="floor"), torch.div(a, b, rounding_mode="trunc")]
    return a // b, a % b, a // 0.1, a % 0.1, 1 % b, *modes, torch.copysign(b, a)


def angles(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    y = a * 0
    return torch.atan2(y, b), torch.atan2(b, a), torch.complex(b, y).angle(), torch.signbit(b), torch.signbit(b.sum())


def integers(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    modes = [torch.div(a, b, rounding_mode="floor"), torch.div(a, 10, rounding_mode="trunc")]
    return a // b, a % b, torch.relu(a), torch.relu((a % 100).int()), *modes


def comparisons(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    both = torch.cat([a, b + 2**31])
    ends = [a.amax(1), a.amin((0, 1)), both.max(), *a.min(1), both.amax(1, keepdim=True), both.amin(0)]
    clipped = [a.clamp(-99, 99), a.clamp(min=5), a.clamp(max=b), a.clamp(5, -5)]
    return torch.maximum(a, b), torch.minimum(a, b), a.sign(), (a.sum() % 7).sign(), *clipped, *ends


def ends(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    below, above = a.masked_fill(b < 0, -torch.inf), a.masked_fill(b < 0, torch.inf)
    one_sided = (
        below.clamp(max=0.5),
        above.clamp(min=-1),
        above.clamp_min(0),
        below.clamp_max(1),
        above.half().clamp(min=0),
    )
    return *one_sided, below.clamp(-1, 2), (a * 9).long().clamp(min=3)


def differences(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    masks = 1.0 - a, 1 - a, (1.0 - (a[:, None] > 0).int()) * torch.finfo(torch.float32).min, 1.5 - b.float()
    return *masks, torch.rsub(a, b, alpha=3), torch.rsub(b.half(), 2), torch.rsub(a.float(), 0.5, alpha=2.0)


def powers(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.pow(a, b), torch.pow(3, b.abs()), torch.pow(a, 39), a ** (b > 0), a.int() ** (b > 0).int()


def mixed(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    f = b.abs().float()
    return torch.pow(a.abs(), f / 9), torch.pow(f.half(), f), torch.pow(f, f > 2), torch.pow(f.sum(), a.abs() % 3)


@pytest.mark.parametrize(
    ("of", "first", "second", "sample"),
    [
        (floats, FLOATS, DIVISORS, torch.randn),
        (ends, FLOATS, DIVISORS, torch.randn),
        (angles, FLOATS, AXES, torch.randn),
        (integers, WHOLE, BY, lambda *size: torch.randint(1, 9, size)),
        (comparisons, WHOLE, BY, lambda *size: torch.randint(1, 9, size)),
        (differences, BY, BASES, lambda *size: torch.randint(1, 9, size)),
        (powers, BASES, POWERS, lambda *size: torch.randint(1, 9, size)),
        (mixed, BASES, BY, lambda *size: torch.randint(1, 9, size)),
    ],
    ids=["floats", "ends", "angles", "integers", "comparisons", "differences", "powers", "mixed"],
)
@pytest.mark.parametrize("opset", [17, 23])
def test_what_a_proof_on_drawn_numbers_does_not_meet(
    of: Callable[..., object],
    first: torch.Tensor,
    second: torch.Tensor,
    sample: Callable[..., torch.Tensor],
    opset: int,
    tmp_path: Path,
) -> None:
    torch.manual_seed(0)
    module = Both(of).eval()
    given = {"a": sample(3, 4), "b": sample(3, 4)}
    trueport.export(module, tmp_path / "out", inputs=given, opset=opset, proof=False)
    check(tmp_path / "out" / "onnx" / "model.onnx")
    found, _ = trueport.load(tmp_path / "out").step({"a": first, "b": second})
    for place, (got, wanted) in enumerate(zip(found.values(), module(first, second), strict=True)):
        assert (got.shape, got.dtype) == (wanted.shape, wanted.dtype), place
        if wanted.is_floating_point():
            assert torch.allclose(got, wanted, rtol=1e-6, atol=1e-6), (place, got, wanted)
        else:
            assert torch.equal(got, wanted), (place, got, wanted)
