"""The doctor: each finding with its line; and the assertion for other people's suites."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trueport
from tests import zoo
from trueport.diagnosis import examine
from trueport.errors import TrueportError
from trueport.testing import assert_exportable

X = torch.arange(12.0).reshape(3, 4)


class Reads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            x = x * 2
        return x


class Constant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(3, 4)


class Stores(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.last = x
        return x * 2


class Draws(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.randn(4)


class Counts(nn.Module):
    calls = [0]  # noqa: RUF012

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls[0] += 1
        return x * self.calls[0]


class Foreign:
    """No pytree node."""

    def __init__(self) -> None:
        self.tensor = X


class TakesForeign(nn.Module):
    def forward(self, foreign: Foreign) -> Foreign:
        return foreign


class Undecidable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        extra = None
        if x.sum() > 0:
            extra = x
        return x if extra is None else x + extra


def line(module: type, text: str) -> str:
    lines, first = inspect.getsourcelines(module)
    return f"{Path(__file__).name}:{first + next(n for n, each in enumerate(lines) if text in each)}"


@pytest.mark.parametrize(
    ("module", "kind", "text", "words"),
    [
        (Stores, "side effect", "self.last", "self.last"),
        (Draws, "random", "torch.randn", "torch.randn"),
        (Counts, "state", "", "second time"),
        (Undecidable, "refused", "x.sum() > 0", "extra"),
    ],
)
def test_what_prevents_an_export_is_named_with_its_line(module: Any, kind: str, text: str, words: str) -> None:
    found = examine(module().eval(), (X,))
    finding = next(each for each in found.findings if each.kind == kind)
    assert not found.exportable and words in str(finding) and finding.mend
    if text:
        assert line(module, text) in str(finding)
    with pytest.raises(AssertionError, match=words.replace(".", r"\.")):
        assert_exportable(module().eval(), (X,))


def test_a_module_in_training_mode_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"training mode\. Call \.eval"):
        assert_exportable(nn.Sequential(nn.Dropout()), (X,))


def test_inputs_that_are_no_pytrees_are_named() -> None:
    with pytest.raises(AssertionError, match=r"Foreign.*@trueport\.state"):
        assert_exportable(TakesForeign().eval(), (Foreign(),))


def test_value_reads_and_rewrites_are_shown() -> None:
    found = examine(Reads().eval(), (X,))
    assert found.exportable and any(line(Reads, "x.sum() > 0") in read for read in found.reads)
    assert "_flow.cond" in found.rewrites[0].diff()
    assert_exportable(Reads().eval(), [(X,), (-X,), (X[:2],)])


class Unrolled(nn.Module):
    """Takes any number of rows, and is traced for one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        for index in range(x.shape[0]):
            y = y + x[index]
        return y


def test_a_dimension_that_becomes_constant_is_named_with_its_line() -> None:
    found = examine(Unrolled().eval(), (X,))
    (constant,) = found.specialised
    assert line(Unrolled, "range(x.shape[0])") in str(constant) and not found.exportable
    (static,) = found.static
    assert "axis 1" in static.problem
    with pytest.raises(AssertionError, match="axis 0 of input x becomes the constant 3"):
        assert_exportable(Unrolled().eval(), (X,))
    assert_exportable(Unrolled().eval(), (X,), dynamic=False)


def test_a_dimension_of_which_the_module_takes_no_other_length_stands_in_nobodys_way() -> None:
    found = examine(Constant().eval(), (X,))
    assert found.exportable and len(found.static) == 2
    assert line(Constant, "torch.ones(3, 4)") in str(found.static[0])
    assert_exportable(nn.Linear(4, 3).eval(), [(X,), (X[:2],)])


def test_the_module_is_as_it_was() -> None:
    module = Stores().eval()
    before = dict(vars(module))
    examine(module, (X,))
    assert vars(module) == before


def test_diagnose_needs_inputs_of_a_module_that_it_does_not_know() -> None:
    with pytest.raises(TrueportError, match="inputs"):
        trueport.diagnose(Reads())
    assert trueport.diagnose(Reads().eval(), inputs=(X,)).exportable


@pytest.mark.slow
def test_diagnose_looks_at_every_graph_of_a_model() -> None:
    found = trueport.diagnose(zoo.build("bart").half())
    assert [part.name for part in found.examinations] == ["encoder", "decoder"]
    assert found.exportable and not any(part.specialised for part in found.examinations)
    assert "modeling_bart.py" in found.diff() and "+    def _then" in found.diff()
    assert any("modeling_bart.py" in text and "isfinite" in text for text in found.lines())
