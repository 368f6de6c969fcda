"""Modules of any kind, from a sample to an artefact that is proven, loaded and stepped."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from filelock import FileLock
from torch import nn

import trueport
from tests.custom import models
from tests.custom.models import ids
from trueport.errors import LoweringError, RunError, SourceError

ROOT = Path(__file__).parents[2]

Case = tuple[nn.Module, Any, dict[Any, str] | None]
CASES: dict[str, Callable[[], Case]] = {
    "gluon": lambda: (models.GluonBert(), (ids(2, 7), ids(2, 7) % 2, torch.tensor([7, 1])), None),
    "mems": lambda: (models.Mems(), (ids(2, 3),), {"mems_out": "mems"}),
    "window": lambda: (models.Mems(window=4), {"ids": ids(1, 3)}, None),
    "lstm": lambda: (models.Lstm(), (ids(2, 3),), None),
    "mamba": lambda: (models.Mamba(), (torch.randn(2, 5, models.WIDTH),), None),
    "masked": lambda: (
        models.MaskedMems(),
        (ids(2, 5), torch.tensor([[1] * 8, [0] + [1] * 7]), [torch.randn(2, 3, models.WIDTH)]),
        {1: "mems"},
    ),
    "xlnet": lambda: (models.XlNetLike(), (ids(2, 5),), None),
    "rwkv": lambda: (models.Rwkv(), (ids(2, 5),), None),
}
SLOW = ("masked", "xlnet", "rwkv")
NAMES = [pytest.param(name, marks=pytest.mark.slow if name in SLOW else []) for name in CASES]


def build(name: str) -> Case:
    torch.manual_seed(0)
    module, inputs, state = CASES[name]()
    return module.eval(), inputs, state


@pytest.fixture
def folder(shared_folder: Path) -> Callable[[str], Path]:
    def get(name: str) -> Path:
        out = shared_folder / f"custom-{name}"
        with FileLock(f"{out}.lock"):
            if not out.exists():
                module, inputs, state = build(name)
                trueport.export(module, out, inputs=inputs, state=state)
        return out

    return get


def component(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "trueport.json").read_text())["components"]["model"]
    return found


def status(folder: Path) -> dict[str, str]:
    proof = json.loads((folder / "proof.json").read_text())
    return {clause["clause"]: clause["status"] for clause in proof["clauses"]}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_it_is_proven(name: str, folder: Callable[[str], Path]) -> None:
    found = status(folder(name))
    assert found["shapes"] == found["finite"] == "pass"
    assert found["state"] == ("pass" if component(folder(name))["state"] else "not applicable")
    graph = onnx.load(folder(name) / "onnx" / "model.onnx").graph
    assert not [node for node in graph.node if node.op_type == "If"]


def test_a_gluon_encoder_serves_every_batch_and_length(folder: Callable[[str], Path]) -> None:
    found = component(folder("gluon"))
    assert found["dimensions"] == {"batch_size": [1, None], "sequence_length": [1, 32]}
    module, loaded = build("gluon")[0], trueport.load(folder("gluon"))
    for rows, length in ((1, 1), (3, 2), (1, 32), (5, 31)):
        given = (ids(rows, length), ids(rows, length) % 2, torch.arange(rows) % length + 1)
        with torch.no_grad():
            wanted = module(*given)[0]
        torch.testing.assert_close(loaded(*given)["output_0"], wanted, rtol=1e-4, atol=1e-5)
    with pytest.raises(RunError, match="at most 32"):
        loaded(ids(1, 33), ids(1, 33) % 2, torch.tensor([1]))


def test_mems_grow_from_nothing(folder: Callable[[str], Path]) -> None:
    found = component(folder("mems"))
    assert found["state"] == [
        {"input": f"mems.{i}", "output": f"present_mems.{i}", "axis": 1, "initial": "empty"} for i in range(2)
    ]
    shapes = {tensor["name"]: tensor["shape"] for tensor in (*found["inputs"], *found["outputs"])}
    assert shapes["mems.0"] == ["batch_size", "past_sequence_length", models.WIDTH]
    assert shapes["present_mems.0"] == ["batch_size", "past_sequence_length + sequence_length", models.WIDTH]


@pytest.mark.slow
def test_a_window_of_mems_stays(folder: Callable[[str], Path]) -> None:
    loaded, state = trueport.load(folder("window")), None
    for _ in range(3):
        _, state = loaded.step({"ids": ids(2, 3)}, state)
    assert {tuple(tensor.shape) for tensor in state.tensors().values()} == {(2, 4, models.WIDTH)}  # type: ignore[union-attr]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "mamba"])
def test_a_state_of_zeros_steps_as_the_module_does(name: str, folder: Callable[[str], Path]) -> None:
    assert {pair["initial"] for pair in component(folder(name))["state"]} == {"zeros"}
    module, inputs, _ = build(name)
    key = component(folder(name))["inputs"][0]["name"]
    whole = inputs[0]
    with torch.no_grad():
        wanted = next(iter(module(whole).values()))
    loaded, state, pieces = trueport.load(folder(name)), None, []
    for step in range(whole.shape[1]):
        outputs, state = loaded.step({key: whole[:, step : step + 1]}, state)
        pieces += outputs.values()
    torch.testing.assert_close(torch.cat(pieces, 1), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_rows_of_a_state_change_places_along_the_batch(folder: Callable[[str], Path]) -> None:
    """An LSTM's states have their layers first."""
    loaded = trueport.load(folder("lstm"))
    _, state = loaded.step({"ids": ids(3, 4)})
    taken = state.take(torch.tensor([2, 0]))
    for name, tensor in state.tensors().items():
        assert torch.equal(taken.tensors()[name], tensor[:, [2, 0]])


def test_verify_with_and_without_the_module(folder: Callable[[str], Path]) -> None:
    alone = trueport.verify(folder("mems"), clauses=["state", "shapes"])
    assert alone.proven and {c.clause for c in alone.clauses if c.status == "pass"} >= {"state"}
    assert trueport.verify(folder("mems"), against=build("mems")[0], clauses=["state"]).proven


def test_another_module_is_found_out(folder: Callable[[str], Path]) -> None:
    torch.manual_seed(1)
    proof = trueport.verify(folder("mems"), against=models.Mems().eval(), clauses=["shapes", "state"])
    assert {clause.clause for clause in proof.failures()} == {"shapes", "state"}


def test_the_card_and_the_report_are_there(folder: Callable[[str], Path]) -> None:
    card = (folder("mems") / "README.md").read_text()
    assert "model.step(" in card and "generate" not in card
    assert (folder("mems") / "report.html").is_file()


def test_named_axes_alone_are_dynamic(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Tanh()).eval()
    trueport.export(module, tmp_path / "out", inputs=(torch.randn(2, 3, 4),), dynamic={"input": {0: "rows"}})
    found = component(tmp_path / "out")
    assert found["inputs"][0]["shape"] == ["rows", 3, 4]
    assert found["dimensions"] == {"rows": [0, None]}


@pytest.mark.slow
def test_the_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import custom_mems

    tokens = custom_mems.main(str(tmp_path / "out"))
    torch.manual_seed(0)
    model, own = custom_mems.Glm().eval(), [5, 17, 42]
    for _ in range(5):
        logits, _ = model(torch.tensor([own]), custom_mems.places(0, len(own)))
        own.append(int(logits[:, -1:].argmax(-1)))
    assert tokens == own
    assert status(tmp_path / "out")["state"] == "pass"
    sys.modules.pop("custom_mems", None)


def test_a_fault_in_the_state_alone_is_found(folder: Callable[[str], Path], tmp_path: Path) -> None:
    """The first call is right and the second is not: only ``state`` and the whole graph's outputs can tell."""
    out = tmp_path / "out"
    shutil.copytree(folder("mems"), out)
    model = onnx.load(out / "onnx" / "model.onnx")
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name == "present_mems.1":
                    names[place] = "unscaled"
    scale = onnx.helper.make_node("Constant", [], ["scale"], value_float=1.001)
    model.graph.node.extend([scale, onnx.helper.make_node("Mul", ["unscaled", "scale"], ["present_mems.1"])])
    onnx.save(model, out / "onnx" / "model.onnx")
    proof = trueport.verify(out, against=build("mems")[0], clauses=["state"])
    failed = [clause for clause in proof.failures() if clause.clause == "state"]
    assert failed and not any(case.failed for case in failed[0].cases if case.case == "batch 3, chunks 10")


@pytest.mark.slow
def test_axes_that_stay_keep_the_samples_length(tmp_path: Path) -> None:
    """An LSTM that is called token by token: one token is what the graph takes, never two."""
    module, inputs, _ = build("lstm")
    trueport.export(module, tmp_path / "out", inputs=(inputs[0][:1, :1],), dynamic={"ids": {0: "rows"}})
    found = component(tmp_path / "out")
    assert found["inputs"][0]["shape"] == ["rows", 1] and status(tmp_path / "out")["state"] == "pass"
    outputs, _ = trueport.load(tmp_path / "out").step({"ids": ids(3, 1)})
    assert outputs["logits"].shape[:2] == (3, 1)


def test_half_of_a_sum_is_no_dimension(tmp_path: Path) -> None:
    module, inputs, state = build("masked")
    with pytest.raises(SourceError, match="is a sum of dimensions"):
        trueport.export(module, tmp_path / "out", inputs=inputs, state=state, dynamic={"ids": {1: "tokens"}})


@pytest.mark.parametrize(
    ("name", "begins"),
    [
        pytest.param("gluon", {"batch_size": 1, "sequence_length": 1}, id="the runtime's Attention refuses 0"),
        pytest.param("mems", {"batch_size": 0, "sequence_length": 0, "past_sequence_length": 0}, id="mems"),
        pytest.param("lstm", {"batch_size": 0, "sequence_length": 1}, id="the module itself refuses a length of 0"),
        pytest.param(
            "xlnet",
            {"batch_size": 1, "sequence_length": 1, "mems_length": 0},
            id="a kernel divides by 0",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_dimension_begins_at_0_where_runtime_and_module_agree(
    name: str, begins: dict[str, int], folder: Callable[[str], Path]
) -> None:
    found = component(folder(name))["dimensions"]
    assert {key: low for key, (low, _) in found.items()} == begins
    asked = [c["case"] for c in json.loads((folder(name) / "proof.json").read_text())["clauses"][0]["cases"]]
    for key, low in begins.items():
        assert any(f"{key.replace('_', ' ')} 0" in case for case in asked) == (low == 0)


def test_no_rows_give_no_rows(folder: Callable[[str], Path]) -> None:
    loaded = trueport.load(folder("mems"))
    logits = next(iter(loaded(ids(0, 3)).values()))
    assert logits.shape[:2] == (0, 3)
    with pytest.raises(RunError, match="1 or more"):
        trueport.load(folder("gluon"))(ids(0, 3), ids(0, 3), torch.ones(0, dtype=torch.long))


def test_a_range_from_0_that_the_runtime_does_not_serve_is_refused(tmp_path: Path) -> None:
    module, inputs, _ = build("gluon")
    rows = torch.export.Dim("rows", min=0, max=8)
    dynamic = {"inputs": {0: rows}, "token_types": {0: rows}, "valid_length": {0: rows}}
    with pytest.raises(LoweringError, match="asks for rows from 0 on"):
        trueport.export(module, tmp_path / "out", inputs=inputs, dynamic=dynamic)
    assert not (tmp_path / "out").exists()
