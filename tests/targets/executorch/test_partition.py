"""What XNNPACK computes otherwise than torch is not given to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("executorch")


class Repeated(nn.Module):
    """An operand made in the program, as large as the result at length 1 alone."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x * y.exp())


class Smaller(nn.Module):
    """An operand that a constant axis keeps smaller than the result."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("row", torch.randn(1, 1, 6))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.exp(), torch.sigmoid(y.exp() * self.row)


def program(module: nn.Module) -> Any:
    from trueport.targets.executorch.lower import partitioner_of, to_program

    batch, length = torch.export.Dim("batch", min=1, max=4), torch.export.Dim("length", min=1, max=16)
    shapes = ({0: batch, 2: length}, {0: batch})
    exported = torch.export.export(module.eval(), inputs(2, 5), dynamic_shapes=shapes)
    return to_program({"forward": exported}, partitioner_of("xnnpack"))


def inputs(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, 64, length), torch.randn(batch, 64, 1)


def test_a_result_outgrows_no_operand(tmp_path: Path):
    from executorch.runtime import Runtime

    module, path = Repeated(), tmp_path / "model.pte"
    path.write_bytes(program(module).buffer)
    loaded = Runtime.get().load_program(path)
    method = loaded.load_method("forward")
    for sizes in ((1, 1), (1, 2), (2, 3)):
        given = inputs(*sizes)
        torch.testing.assert_close(method.execute(list(given))[0], module(*given))


@pytest.mark.parametrize(("module", "left"), [(Repeated, ["mul"]), (Smaller, [])])
def test_only_what_may_outgrow_an_operand_is_left_to_others(module: Callable[[], nn.Module], left: list[str]):
    nodes = program(module()).exported_program("forward").graph.nodes
    assert [str(n.target).split(".")[1] for n in nodes if "aten." in str(n.target)] == left
