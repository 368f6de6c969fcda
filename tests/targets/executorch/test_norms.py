"""A layer norm of rows whose mean is far larger than their deviation."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn


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
