"""Files that a repair reads and writes: weights beside the graph, and what a killed repair left."""

from __future__ import annotations

import os
from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.graphs.audit.test_rules import blocks
from tests.graphs.repair.test_repair import OPERATORS, saved
from trueport.errors import TrueportError
from trueport.graphs.audit import audit
from trueport.graphs.repair import repair


@pytest.mark.parametrize("linked", [False, True])
def test_weights_in_a_file_go_along(linked: bool, tmp_path: Path) -> None:
    """Hard links included, which onnx-ir refuses to read and ``export --weights link`` makes."""
    model = onnx.parser.parse_model(OPERATORS["unidirectional"])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "graph.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    if linked:
        (tmp_path / "checkpoint").hardlink_to(tmp_path / "weights")
    (tmp_path / "out").mkdir()
    done = repair(tmp_path / "graph.onnx", tmp_path / "out" / "fixed.onnx")
    assert done.proof is not None and done.proof.proven
    assert {file.name for file in (tmp_path / "out").iterdir()} <= {"fixed.onnx", "fixed.onnx_data"}
    audit(tmp_path / "out" / "fixed.onnx")


@pytest.mark.parametrize("out", ["weights", "fixed.onnx"])
def test_the_graphs_own_weights_are_not_written_over(out: str, tmp_path: Path) -> None:
    """Neither by the mended graph nor by the file of its weights, which takes the mended graph's name and ``_data``."""
    model = onnx.parser.parse_model(OPERATORS["unidirectional"])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    data = tmp_path / (out if out == "weights" else f"{out}_data")
    onnx.save(model, tmp_path / "graph.onnx", save_as_external_data=True, location=data.name, size_threshold=0)
    before = data.read_bytes()
    with pytest.raises(TrueportError, match=f"over {data.name}, which is needed"):
        repair(tmp_path / "graph.onnx", tmp_path / out, force=True)
    assert data.read_bytes() == before and {file.name for file in tmp_path.iterdir()} == {"graph.onnx", data.name}


def test_what_a_killed_repair_left_is_removed(tmp_path: Path) -> None:
    """Or one that ONNX Runtime took along when it fell over the graph; of what belongs to others nothing."""
    kept = [tmp_path / f".fixed.onnx.trueport-{name}" for name in (os.getppid(), "mine")]
    for folder in (tmp_path / ".fixed.onnx.trueport-4194999", *kept):
        folder.mkdir()
    repair(saved(blocks("summed-masks")[0], tmp_path), tmp_path / "fixed.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"graph.onnx", "fixed.onnx", *(folder.name for folder in kept)}


def test_no_graph_lies_beside_the_weights_of_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a repair ends between its two files, an earlier graph would read the new weights for its own."""
    model = onnx.parser.parse_model(OPERATORS["unidirectional"])
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor), tensor.name))
    onnx.save(model, tmp_path / "graph.onnx", save_as_external_data=True, location="weights", size_threshold=0)
    out = tmp_path / "fixed.onnx"
    repair(tmp_path / "graph.onnx", out)
    moved: list[str] = []

    def once(source: str, target: str) -> None:
        if Path(target).parent == tmp_path:
            if moved:
                raise OSError("the end")
            moved.append(Path(target).name)
        os.rename(source, target)

    monkeypatch.setattr(os, "replace", once)
    with pytest.raises(TrueportError):
        repair(tmp_path / "graph.onnx", out, force=True)
    assert moved == ["fixed.onnx_data"] and not out.exists()
