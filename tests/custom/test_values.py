"""Values that a module gives out or meets: constants, halves that are counted in floats, zeros and ties."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trueport

Function = Callable[[torch.Tensor], Any]


class Applied(nn.Module):
    """A function of one tensor."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(x)


def carried(function: Function, sample: torch.Tensor, out: Path) -> Function:
    """The function's proven artefact, of one input and outputs by name."""
    trueport.export(Applied(function).eval(), out, inputs=(sample,), state={})
    loaded = trueport.load(out)
    return lambda x: loaded.step({"x": x})[0]


def test_an_output_may_be_constant(tmp_path: Path) -> None:
    run = carried(
        lambda x: {"y": x + 1, "two": torch.full((3,), 2).to(torch.float32).relu()}, torch.randn(2, 3), tmp_path / "o"
    )
    given = run(torch.zeros(1, 2))
    assert (given["y"] == 1).all() and torch.as_tensor(given["two"]).tolist() == [2.0, 2.0, 2.0]


@pytest.mark.parametrize("name", ["sum", "cumsum", "prod"])
def test_halves_that_are_counted_in_float32_are_given_out_as_halves(name: str, tmp_path: Path) -> None:
    run = carried(lambda x: {"y": getattr(x, name)(1)}, (1 + torch.rand(2, 3) / 5).half(), tmp_path / "o")
    given = torch.as_tensor(run(torch.full((1, 3), 2.0).half())["y"])
    assert given.dtype == torch.float16
    assert given.flatten()[-1] == (8 if name == "prod" else 6)


def written(x: torch.Tensor) -> torch.Tensor:
    """A column to every place of a tensor, in place."""
    y = torch.zeros_like(x)
    y.copy_(x[:, :1])
    return y + 1


def test_what_is_copied_in_place_is_spread(tmp_path: Path) -> None:
    run = carried(lambda x: {"y": written(x)}, torch.randn(3, 5), tmp_path / "o")
    x = torch.randn(2, 7)
    assert (torch.as_tensor(run(x)["y"]) == written(x)).all()


def test_a_choice_of_truths_and_a_remainder_by_a_size(tmp_path: Path) -> None:
    run = carried(
        lambda x: {
            "both": torch.where(x > 1, x > 2, x < 0),
            "one": torch.where(x > 1, x > 2, True),
            "left": x % x.shape[1],
        },
        torch.arange(-6, 6).reshape(3, 4),
        tmp_path / "o",
    )
    x = torch.tensor([[-3, 0, 2], [3, 5, -1]])
    given = {name: torch.as_tensor(value).tolist() for name, value in run(x).items()}
    assert given["both"] == [[True, False, False], [True, True, True]]
    assert given["one"] == [[True, True, False], [True, True, True]]
    assert given["left"] == [[0, 0, 2], [0, 2, 2]]
