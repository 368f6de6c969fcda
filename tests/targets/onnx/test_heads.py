"""Attention without an axis of heads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

import trueport
from tests.targets.onnx.test_arithmetic import Both


def heads(a: torch.Tensor, b: torch.Tensor) -> tuple[torch.Tensor, ...]:
    attend = functional.scaled_dot_product_attention
    seen = b.sum(-1, keepdim=True) * a.sum(-1).unsqueeze(1) > -1
    masked = (
        attend(b, a, a, attn_mask=seen),
        attend(b, a, a, attn_mask=seen.float()),
        attend(b, a, a, attn_mask=seen[0]),
    )
    return attend(b, a, a), attend(a, a, a, is_causal=True), attend(b, b, b, scale=0.3), *masked


@pytest.mark.parametrize("opset", [17, 23])
def test_one_head_needs_no_axis(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Both(heads).eval()
    sample = {"a": torch.randn(2, 5, 8), "b": torch.randn(2, 3, 8)}
    trueport.export(module, tmp_path / "out", inputs=sample, dynamic={"a": (), "b": ()}, opset=opset, proof=False)
    found, _ = trueport.load(tmp_path / "out").step(sample)
    for got, wanted in zip(found.values(), module(**sample), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
