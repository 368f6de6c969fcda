"""Weights that lie in memory once while a program is lowered."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch

pytest.importorskip("executorch")

from trueport.targets.executorch import lower, sharing
from trueport.targets.executorch.sharing import deepcopy


class Two(torch.nn.Module):
    """A convolution that XNNPACK fuses with its norm, and two linear layers with a shared weight."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = torch.nn.Conv2d(3, 4, 2), torch.nn.BatchNorm2d(4)
        self.first, self.second = torch.nn.Linear(5, 5), torch.nn.Linear(5, 5)
        self.second.weight = self.first.weight
        self.register_buffer("table", torch.arange(5.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Pixels (batch, 3, 6, 6) to (batch, 4, 5, 5)."""
        return self.second(torch.relu(self.first(self.norm(self.convolution(x)) + self.table)))


def program() -> torch.export.ExportedProgram:
    torch.manual_seed(0)
    return torch.export.export(Two().eval(), (torch.randn(2, 3, 6, 6),), strict=False)


def test_a_copy_has_a_graph_of_its_own_and_the_same_weights():
    first = program()
    second = deepcopy(first)
    assert second.graph is not first.graph and second.state_dict is not first.state_dict
    assert all(second.state_dict[name] is tensor for name, tensor in first.state_dict.items())
    assert deepcopy([torch.ones(2)])[0] is not None


def test_the_program_is_the_same_and_its_weights_are_not_written_to(monkeypatch: pytest.MonkeyPatch):
    """XNNPACK fuses the norm into new weights."""
    copied: list[int] = []
    original = torch.nn.Parameter.__deepcopy__

    def counting(self: torch.nn.Parameter, memo: Any) -> Any:
        copied.append(self.nbytes)
        return original(self, memo)

    monkeypatch.setattr(torch.nn.Parameter, "__deepcopy__", counting)
    given, plain = program(), program()
    before = {name: tensor.clone() for name, tensor in given.state_dict.items()}
    shared = lower.to_program({"forward": given}, lower.partitioner_of("xnnpack")).buffer
    assert copied == []
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict.items())
    monkeypatch.setattr(sharing, "shared_weights", nullcontext)
    assert lower.to_program({"forward": plain}, lower.partitioner_of("xnnpack")).buffer == shared
    assert copied != []
