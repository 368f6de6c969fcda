"""States in the forms in which people keep them, stepped as the module steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trueport
from trueport.errors import CaptureError, LoweringError, RunError, SourceError, TrueportError

X = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))


class ConvCache(nn.Module):
    """None is two zeros; a longer cache would run as well."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 4, 3)

    def forward(self, x: torch.Tensor, cache: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        x = x.transpose(1, 2)
        cache = x.new_zeros(x.shape[0], 4, 2) if cache is None else cache
        x = torch.cat([cache, x], 2)
        return {"y": self.conv(x).transpose(1, 2), "cache": x[:, :, -2:]}


class RunningMean(nn.Module):
    """A second state axis that the inputs tell: its features."""

    def forward(self, x: torch.Tensor, mean: torch.Tensor, count: torch.Tensor) -> dict[str, torch.Tensor]:
        total = count + x.shape[1]
        mean = (mean * count[:, None] + x.sum(1)) / total[:, None]
        return {"y": x - mean[:, None], "mean_out": mean, "count_out": total}


class Counter(nn.Module):
    """A state without axes."""

    def forward(self, x: torch.Tensor, n: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        n = torch.zeros((), dtype=torch.long) if n is None else n
        return {"y": x + (n + torch.arange(x.shape[1]))[None, :, None], "n_out": n + x.shape[1]}


class Cell(nn.Module):
    """The answer is the state."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
        h = self.cell(x, h)
        return h, h


def first(result: Any) -> torch.Tensor:
    return next(iter(result.values())) if isinstance(result, dict) else result[0]


CASES = [
    pytest.param(ConvCache(), {"x": X}, None, ["cache"], id="a cache of fixed length"),
    pytest.param(
        RunningMean(),
        {"x": X, "mean": torch.zeros(2, 4), "count": torch.zeros(2)},
        {"mean_out": "mean", "count_out": "count"},
        ["mean_out", "count_out"],
        id="an axis that the inputs tell",
    ),
    pytest.param(Counter(), {"x": X}, {"n_out": "n"}, ["n_out"], id="no axis at all"),
    pytest.param(Cell(), {"x": X[:, 0]}, {1: "h"}, [1], id="the answer is the state"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("module", "inputs", "state", "keys"), CASES)
@torch.no_grad()
def test_steps_from_the_beginning_on(
    module: nn.Module, inputs: dict[str, torch.Tensor], state: Any, keys: list[Any], tmp_path: Path
) -> None:
    module = module.eval()
    trueport.export(module, tmp_path / "out", inputs=inputs, state=state)
    loaded, carried, given = trueport.load(tmp_path / "out"), None, dict(inputs)
    names = {"cache": "cache", "mean_out": "mean", "count_out": "count", "n_out": "n", 1: "h"}
    for number in range(3):
        x = X[:, 0] + number if isinstance(module, Cell) else X[:, : 3 - number] + number
        outputs, carried = loaded.step({"x": x}, carried)
        wanted = module(**{**given, "x": x})
        torch.testing.assert_close(next(iter(outputs.values())), first(wanted), rtol=1e-4, atol=1e-5)
        given |= {names[key]: wanted[key] for key in keys}
    carried.take(torch.tensor([1, 0]))  # type: ignore[union-attr]


@trueport.state
@dataclass
class Kept:
    keys: torch.Tensor
    place: torch.Tensor


class InClass(nn.Module):
    """A state of the user's own class, found by calling twice."""

    def forward(self, x: torch.Tensor, kept: Kept | None = None) -> tuple[torch.Tensor, Kept]:
        if kept is None:
            kept = Kept(x.new_zeros(x.shape[0], 0, 4), torch.zeros(x.shape[0], dtype=torch.long))
        keys = torch.cat([kept.keys, x], 1)
        return x + keys.mean(1, keepdim=True) + kept.place[:, None, None], Kept(keys, kept.place + x.shape[1])


@pytest.mark.slow
@torch.no_grad()
def test_a_state_of_ones_own_class_is_found(tmp_path: Path) -> None:
    module = InClass().eval()
    trueport.export(module, tmp_path / "out", inputs={"x": X})
    loaded, carried, kept = trueport.load(tmp_path / "out"), None, None
    for _ in range(3):
        outputs, carried = loaded.step({"x": X}, carried)
        wanted, kept = module(X, kept)
        torch.testing.assert_close(next(iter(outputs.values())), wanted, rtol=1e-4, atol=1e-5)


class Counts(nn.Module):
    """A Python number in the state."""

    def forward(self, x: torch.Tensor, seen: list[Any] | None = None) -> tuple[torch.Tensor, list[Any]]:
        tensor, count = (x * 0, 0) if seen is None else seen
        return x + tensor + count, [x, count + 1]


def test_a_number_in_a_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="something else than tensors"):
        trueport.export(Counts().eval(), tmp_path / "out", inputs={"x": X})


class Bytes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * 10).to(torch.uint8)


def test_a_dtype_that_no_artefact_has_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(CaptureError, match="output is uint8"):
        trueport.export(Bytes().eval(), tmp_path / "out", inputs=(X,))
    with pytest.raises(SourceError, match="input is int8"):
        trueport.export(nn.Identity().eval(), tmp_path / "out", inputs=(X.to(torch.int8),))


class Written(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x += 1
        return x * 2


@pytest.mark.slow
def test_an_input_that_is_written_to(tmp_path: Path) -> None:
    trueport.export(Written().eval(), tmp_path / "onnx", inputs=(X,))
    pytest.importorskip("executorch")
    with pytest.raises(LoweringError, match="writes to its input"):
        trueport.export(Written().eval(), tmp_path / "pte", inputs=(X,), to="executorch")


class Denoise(nn.Module):
    def forward(self, x: torch.Tensor, t: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"x": x * t[:, None, None]}


@pytest.mark.slow
def test_an_output_called_as_an_input_is_no_state_where_nothing_else_is_given(tmp_path: Path) -> None:
    trueport.export(Denoise().eval(), tmp_path / "out", inputs=(X, torch.tensor([0.5, 2.0])))
    got = trueport.load(tmp_path / "out")(X, torch.tensor([0.5, 2.0]))
    torch.testing.assert_close(got["output_x"], X * torch.tensor([0.5, 2.0])[:, None, None])


class Nested(nn.Module):
    def forward(self, parts: list[torch.Tensor], scale: torch.Tensor) -> torch.Tensor:
        return (parts[0] + parts[1]) * scale


def test_inputs_within_a_list_are_given_by_their_names(tmp_path: Path) -> None:
    trueport.export(Nested().eval(), tmp_path / "out", inputs=([X, X * 2], torch.tensor(2.0)), proof=False)
    got = trueport.load(tmp_path / "out")(**{"parts.0": X, "parts.1": X, "scale": torch.tensor(3.0)})
    torch.testing.assert_close(got["output"], X * 6)


class Running(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.largest.copy_(torch.maximum(self.largest, x.abs().max()))
        return x / self.largest


def test_a_buffer_that_a_call_changes_is_refused(tmp_path: Path) -> None:
    module = Running().eval()
    with pytest.raises(SourceError, match="writes to the buffer largest"):
        trueport.export(module, tmp_path / "out", inputs=(X,))
    assert float(module.largest) == 0


@pytest.mark.parametrize(
    ("dynamic", "words"),
    [({"input": {0: "n", 1: "n"}}, "to two dimensions"), ({"input": {0: "a + b"}}, "letters")],
)
def test_names_of_dimensions_are_checked(dynamic: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match=words):
        trueport.export(nn.Tanh().eval(), tmp_path / "out", inputs=(X,), dynamic=dynamic)


class TwoLayers(nn.Module):
    """Whose state has its layers first, as torch's own have."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.gru = nn.GRU(4, 4, num_layers=2, batch_first=True)

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        y, h = self.gru(x * 3, h)
        return {"y": y, "h_out": h}


@pytest.mark.slow
def test_rows_under_a_name_of_ones_own_take_their_state_along(tmp_path: Path) -> None:
    module = TwoLayers().eval()
    artifact = trueport.export(module, tmp_path / "out", inputs=(X,), dynamic={"x": {0: "lines", 1: "time"}})
    assert artifact.proof is not None
    (asked,) = (clause for clause in artifact.proof["clauses"] if clause["clause"] == "state")
    assert "batch 3, rows reordered and repeated" in [case["case"] for case in asked["cases"]]
    model = trueport.load(tmp_path / "out")
    _, state = model.step({"x": X})
    got, _ = model.step({"x": X}, state.take([1, 0]))
    with torch.no_grad():
        wanted = module(X, module(X)["h_out"][:, [1, 0]])["y"]
    torch.testing.assert_close(got["y"], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rows_of_a_state_that_has_no_axis_for_them_are_refused(tmp_path: Path) -> None:
    module = TwoLayers().eval()
    trueport.export(module, tmp_path / "out", inputs=(X,), dynamic={"x": {1: "time"}})
    _, state = trueport.load(tmp_path / "out").step({"x": X})
    with pytest.raises(RunError, match="no axis of rows"):
        state.take([1, 0])
