"""What the manifest says that a bound costs, against programs planned for half of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  (registers its operators)

import trueport
from tests import zoo
from tests.conftest import Exported
from tests.targets.executorch.conftest import BATCH, LENGTH
from trueport.artifact import read_manifest


def memory(folder: Path) -> dict[str, Any]:
    return read_manifest(folder)["components"]["model"]["memory"]


@pytest.mark.slow
def test_half_of_the_length_saves_what_the_manifest_says(program: Exported, tmp_path: Path):
    whole = memory(program("bert"))
    half = {"max_batch": BATCH, "max_length": LENGTH // 2}
    trueport.export(zoo.build("bert"), tmp_path / "half", to="executorch", tokenizer=None, proof=False, **half)
    saved = whole["arena"] - memory(tmp_path / "half")["arena"]
    assert whole["saved_by_half"]["sequence_length"] == pytest.approx(saved, rel=0.05)


class Products(torch.nn.Module):
    """Rows (rows, 64) through 32 experts, one megabyte of them for each time."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.weights = torch.nn.ParameterList(torch.randn(32, 64, 128) for _ in range(times))

    def forward(self, rows: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        for weight in self.weights:
            rows = torch.ops.transformers.grouped_mm_fallback(rows, weight, ends)[:, :64]
        return rows


def planned(times: int) -> int:
    from trueport.targets.executorch.lower import partitioner_of, to_program

    module = Products(times).eval().requires_grad_(False)
    given = torch.randn(6, 64), torch.full((32,), 6)
    exported = torch.export.export(module, given, dynamic_shapes=({0: torch.export.Dim.DYNAMIC(max=16)}, None))
    plan = to_program({"forward": exported}, partitioner_of("xnnpack")).executorch_program.execution_plan[0]
    return int(sum(plan.non_const_buffer_sizes))


def test_loops_share_memory_and_plan_none_for_what_they_read() -> None:
    once, thrice = planned(1), planned(3)
    assert once < 2**18 and thrice < once * 1.2
