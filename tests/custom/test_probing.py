"""Which axes can have other lengths."""

from __future__ import annotations

import torch
from torch import nn

from tests.custom.models import GluonBert, MaskedMems, ids
from trueport.roles.custom import describe
from trueport.roles.probing import Probe, find_axes, resized


class Two(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a @ b


def test_equal_lengths_that_need_not_be_equal_are_told_apart() -> None:
    """Every length is 4, and (m, k) @ (k, n) has three."""
    found = find_axes(
        Probe(lambda feeds: {"o": feeds["a"] @ feeds["b"]}), {"a": torch.ones(4, 4), "b": torch.ones(4, 4)}
    )
    numbers = found.axes
    assert numbers["a", 1] == numbers["b", 0]
    assert len({numbers["a", 0], numbers["a", 1], numbers["b", 1]}) == 3


def test_a_sample_of_one_row_and_one_token_is_enough() -> None:
    found = describe(GluonBert().eval(), (ids(1, 1), ids(1, 1) % 2, torch.tensor([1])))
    interface = found.component.interface
    assert interface.input("inputs").shape == ("batch_size", "sequence_length")
    assert interface.input("valid_length").shape == ("batch_size",)
    assert interface.dimension("sequence_length").maximum == 32


def test_a_width_that_the_weights_fix_is_static() -> None:
    found = describe(nn.Linear(4, 2).eval(), (torch.ones(4, 4),))
    assert found.component.interface.inputs[0].shape == ("batch_size", 4)


def test_a_mask_over_past_and_new_is_a_sum() -> None:
    given = (ids(2, 5), torch.ones(2, 8, dtype=torch.long), [torch.randn(2, 3, 8)])
    interface = describe(MaskedMems().eval(), given, state={1: "mems"}).component.interface
    assert set(str(interface.input("mask").shape[1]).split(" + ")) == {"sequence_length", "mems_length"}
    assert interface.dimension("mems_length").minimum == 0


def test_resizing_keeps_values_legal() -> None:
    tensor = torch.tensor([[5, 9, 7]])
    assert resized(tensor, (2, 5)).tolist() == [[5, 9, 7, 5, 9]] * 2
    assert resized(tensor, (0, 2)).shape == (0, 2)
