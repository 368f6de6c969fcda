"""What cannot be one program is refused with the place where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trueport
from tests.custom import models
from trueport.errors import TrueportError


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.calls: list[int] = []


class SideEffect(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = self.layer(x)
        return self.last


class Dice(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.rand(4)


class Counter(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.append(1)
        return self.layer(x) * len(self.calls)


class Sound(Base):
    def forward(self, x: torch.Tensor, extra: Any = None) -> torch.Tensor:
        return self.layer(x)


class NotEmpty(Base):
    """None is not what zeros are."""

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        h = torch.ones(x.shape[0], 4) if h is None else h
        return {"y": self.layer(x) + h, "h": h * 2}


class Middle(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x).median(-1).values


class Blackbox:
    def __init__(self) -> None:
        self.value = torch.ones(4)


X = torch.randn(2, 4)
CASES: list[tuple[nn.Module, Any, str]] = [
    (SideEffect(), (X,), r"test_refusals.py:\d+: forward assigns self.last"),
    (Dice(), (X,), r"test_refusals.py:\d+: torch.rand draws without a seed"),
    (Counter(), (X,), "Counter answers the same inputs differently the second time"),
    (Sound(), None, "only sample inputs tell what it takes"),
    (Sound(), {"y": X}, "Sound.forward does not take these inputs"),
    (Sound(), (X, Blackbox()), "Blackbox"),
    (Sound(), (torch.randn(2, 5),), "does not run on its sample inputs"),
    (Middle(), (X,), r"ONNX has no form of aten.median.dim at .*test_refusals.py:\d+. For x.median.* write x.topk"),
    (NotEmpty(), (X,), "without its state gives another"),
]


@pytest.mark.parametrize(("module", "inputs", "words"), CASES, ids=lambda value: type(value).__name__)
def test_it_is_refused(module: nn.Module, inputs: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match=words):
        trueport.export(module.eval(), tmp_path / "out", inputs=inputs)
    assert not (tmp_path / "out").exists()


def test_training_mode_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match="training mode"):
        trueport.export(Sound().train(), tmp_path / "out", inputs=(X,))


def test_torchscript_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match="TorchScript"):
        trueport.export(torch.jit.trace(Sound().eval(), (X,)), tmp_path / "out", inputs=(X,))


def test_source_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    """Made by ``exec``, as notebooks and code generators do: what need not be rewritten goes, what must does not."""
    space: dict[str, Any] = {"nn": nn, "torch": torch}
    exec(
        "class Hidden(nn.Module):\n"
        "    def forward(self, x):\n"
        "        if x.sum() > 0:\n"
        "            return x + 1\n"
        "        return x - 1\n",
        space,
    )
    with pytest.raises(TrueportError, match=r"Hidden|<string>|source"):
        trueport.export(space["Hidden"]().eval(), tmp_path / "out", inputs=(X,))


def test_an_axis_that_cannot_be_dynamic_is_told_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match=r"Axis 1 of x cannot be dynamic: RuntimeError: mat1 and mat2"):
        trueport.export(Sound().eval(), tmp_path / "out", inputs=(X,), dynamic={"x": {1: "width"}})


def test_a_state_that_is_not_there_is_told(tmp_path: Path) -> None:
    given = (models.ids(2, 3),)
    with pytest.raises(TrueportError, match="names the output memory, which is none of logits, mems_out"):
        trueport.export(models.Mems().eval(), tmp_path / "out", inputs=given, state={"memory": "mems"})


def test_inputs_are_for_other_modules(tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match="no PreTrainedModel"):
        trueport.export("some/model", tmp_path / "out", inputs=(X,))
