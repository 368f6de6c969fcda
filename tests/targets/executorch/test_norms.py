"""Norms of rows whose mean is far larger than their deviation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import trueport


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["portable", "xnnpack"])
def test_a_layer_norm_is_as_exact_as_torch(backend: str, tmp_path: Path) -> None:
    runtime = pytest.importorskip("executorch.runtime")
    from trueport.targets.executorch.lower import partitioner_of, to_program

    norm = nn.LayerNorm(32).eval()
    rows = torch.full((1, 3, 32), 30.0) + 1e-2 * torch.randn(1, 3, 32, generator=torch.Generator().manual_seed(0))
    rows[0, 0] = 4.53  # constant: the variance that the kernel finds by itself may be negative
    program = to_program({"forward": torch.export.export(norm, (rows,), strict=False)}, partitioner_of(backend))
    path = tmp_path / "norm.pte"
    path.write_bytes(program.buffer)
    (found,) = runtime.Runtime.get().load_program(path).load_method("forward").execute([rows])
    with torch.no_grad():
        torch.testing.assert_close(found, norm(rows), rtol=1e-3, atol=1e-3)


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.groups, self.instances = nn.GroupNorm(2, 4), nn.InstanceNorm1d(4)
        nn.init.normal_(self.groups.weight)
        nn.init.normal_(self.groups.bias)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.groups(x), self.instances(x), self.groups(x.unsqueeze(2)), torch.nn.functional.group_norm(x, 4)


@pytest.mark.slow
@pytest.mark.parametrize(("to", "opset"), [("executorch", {}), ("onnx", {"opset": 17}), ("onnx", {"opset": 23})])
def test_norms_of_groups_and_instances_are_as_exact(to: str, opset: dict[str, int], tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Grouped().eval()
    trueport.export(module, tmp_path / "out", inputs={"x": torch.randn(2, 4, 6)}, to=to, proof=False, **opset)  # type: ignore[arg-type]
    x = 100 + 1e-1 * torch.randn(3, 4, 6)
    x[0] = 45.3  # constant: the variance that a kernel finds by itself may be negative
    found, _ = trueport.load(tmp_path / "out").step({"x": x})
    exact = [each.float() for each in Grouped.forward(module.double(), x.double())]
    for got, wanted in zip(found.values(), exact, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
