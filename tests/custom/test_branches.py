"""A proof asks the sample itself, and values of other sizes, so that a branch which no draw takes is taken all the same."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import trueport
from trueport.errors import TrueportError


class Rare(nn.Module):
    """Its branch is taken by values that no draw of the sample's own size has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x)
        if x.abs().max() > 60:
            y = y * 0.125
        return y


def cases(folder: Path) -> list[str]:
    (shapes,) = (c for c in json.loads((folder / "proof.json").read_text())["clauses"] if c["clause"] == "shapes")
    return [case["case"] for case in shapes["cases"]]


def test_a_fault_in_a_branch_that_the_sample_does_not_take_is_found(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Rare().eval()
    trueport.export(module, tmp_path / "out", inputs=(torch.randn(3, 4),))
    assert {"the sample", "values times 100"} <= set(cases(tmp_path / "out"))
    path = tmp_path / "out" / "onnx" / "model.onnx"
    model = onnx.load(path)
    halved = [0]

    def halve(graph: onnx.GraphProto) -> None:
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    halve(attribute.g)
                if attribute.HasField("t") and numpy_helper.to_array(attribute.t).flatten().tolist() == [0.125]:
                    attribute.t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(attribute.t) / 2))
                    halved[0] += 1
        for tensor in graph.initializer:
            if tensor.data_location != onnx.TensorProto.EXTERNAL and numpy_helper.to_array(tensor).tolist() == 0.125:
                tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) / 2, tensor.name))
                halved[0] += 1

    halve(model.graph)
    assert halved[0] == 1
    onnx.save(model, path)
    proof = trueport.verify(tmp_path / "out", against=module, clauses=["shapes"])
    (failed,) = (clause for clause in proof.failures() if clause.clause == "shapes")
    assert [case.case for case in failed.cases if case.failed] == ["values times 100"]


class Far(nn.Module):
    """A branch that nothing which is drawn takes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.abs().max() > 1e6:
            x = x / 2
        return x * 3


@pytest.mark.slow
def test_a_branch_that_no_input_takes_is_told(tmp_path: Path) -> None:
    trueport.export(Far().eval(), tmp_path / "out", inputs=(torch.randn(3, 4),))
    content = json.loads((tmp_path / "out" / "proof.json").read_text())
    assert content["verdict"] == "proven"
    assert any("test_branches.py:" in note and "was not compared" in note for note in content["notes"]), content[
        "notes"
    ]
    trueport.export(Far().eval(), tmp_path / "both", inputs=(torch.randn(3, 4) * 1e6,))
    assert not json.loads((tmp_path / "both" / "proof.json").read_text()).get("notes")


class Sorted(nn.Module):
    """Takes no drawn input: they are not sorted."""

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        if not bool((t[:, 1:] >= t[:, :-1]).all()):
            raise ValueError("times must be sorted")
        return t + 1


def test_what_no_draw_can_be_is_proven_on_the_sample(tmp_path: Path) -> None:
    trueport.export(Sorted().eval(), tmp_path / "out", inputs=(torch.arange(12.0).reshape(3, 4) - 3,), dynamic={})
    assert "the sample" in cases(tmp_path / "out")
    proof = trueport.verify(tmp_path / "out", against=Sorted().eval(), clauses=["shapes"])
    (shapes,) = (clause for clause in proof.clauses if clause.clause == "shapes")
    assert "refuses" in shapes.reason


def test_where_nothing_can_be_compared_nothing_is_proven(tmp_path: Path) -> None:
    """The sample is too large to be kept, and the original refuses all that is drawn."""
    sample = torch.arange(9000.0).reshape(3, 3000) - 3
    with pytest.raises(TrueportError, match="refuses every input"):
        trueport.export(Sorted().eval(), tmp_path / "out", inputs=(sample,), dynamic={})
    assert not (tmp_path / "out").exists()


class Hidden(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.masked_fill(x < 0, -torch.inf), x * 2


def test_a_nan_in_the_sample_and_infinite_outputs_are_compared(tmp_path: Path) -> None:
    sample = torch.tensor([[1.0, torch.nan, 2.0, -1.0], [0.5, -2.0, 3.0, 4.0]])
    trueport.export(Hidden().eval(), tmp_path / "out", inputs=(sample,))
    source = json.loads((tmp_path / "out" / "trueport.json").read_text())["source"]
    assert source["draws"]["x"]["mean"] == pytest.approx(float(sample.nanmean()))
    got = trueport.load(tmp_path / "out")(torch.tensor([[-1.0, 1.0]]).repeat(1, 2))["output_0"]
    assert got.isinf().sum() == 2


class Exponential(nn.Module):
    """Whose float32 overflows where float64 does not."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.exp(), x.exp() - x.exp()


def test_what_overflows_in_the_original_too_is_no_fault(tmp_path: Path) -> None:
    found = trueport.export(Exponential().eval(), tmp_path / "out", inputs=(torch.randn(3, 4),))
    assert found.verdict == "proven"
