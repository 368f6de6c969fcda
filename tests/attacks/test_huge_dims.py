"""Tensors of a size that no machine holds, in a file of a hundred bytes."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.attacks import making
from trueport.graphs.audit import audit
from trueport.graphs.audit.shapes import MOST_WORKED_OUT, _most_worked_out
from trueport.graphs.loading import GraphError, load


def test_huge_weight_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    model.graph.initializer[0].dims[:] = [1 << 40, 1 << 40]
    making.refused(making.folder_with(model, tmp_path / "model"), "has the shape", monkeypatch, capsys)


def test_negative_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    model.graph.initializer[0].dims[:] = [-1, -16]
    making.refused(making.folder_with(model, tmp_path / "model"), "has the shape", monkeypatch, capsys)


def test_weight_without_its_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    model.graph.initializer[0].dims[:] = [1 << 30, 2]
    making.refused(making.folder_with(model, tmp_path / "model"), "holds 16 numbers", monkeypatch, capsys)


def test_huge_input_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    for axis in model.graph.input[0].type.tensor_type.shape.dim:
        axis.dim_value = 1 << 40
    making.refused(making.folder_with(model, tmp_path / "model"), "is declared with", monkeypatch, capsys)


def test_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """ConstantOfShape makes terabytes out of two numbers, and a runtime folds it when it loads."""
    model = making.right()
    shape = model.graph.initializer.add(name="shape", data_type=7, dims=[2])
    shape.int64_data[:] = [1 << 20, 1 << 20]
    model.graph.node.add(op_type="ConstantOfShape", input=["shape"], output=["bomb"])
    making.refused(making.folder_with(model, tmp_path / "model"), "makes 1,099,511,627,776", monkeypatch, capsys)


@pytest.mark.parametrize(
    "body",
    [
        "s = Constant <value_ints = [1048576, 1048576]> ()\nbomb = ConstantOfShape (s)",
        "a = Constant <value_int = 0> ()\nb = Constant <value_int = 1099511627776> ()\n"
        "c = Constant <value_int = 1> ()\nbomb = Range (a, b, c)",
    ],
)
def test_bombs_in_attributes_are_refused(body: str, tmp_path: Path) -> None:
    text = (
        f'<ir_version: 10, opset_import: ["" : 18]>\ng (float[b, 4] x) => (float[b, 4] y)\n{{\n{body}\ny = Relu (x)\n}}'
    )
    onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
    with pytest.raises(GraphError, match="makes 1,099,511,627,776"):
        load(tmp_path / "model.onnx")


def test_small_graphs_that_unfold(tmp_path: Path) -> None:
    """ONNX's shape inference keeps every number that it works out: a kilobyte of graph took all memory of a machine."""
    doubled = "s0 = Shape (x)\n" + "".join(f"s{n + 1} = Concat <axis = 0> (s{n}, s{n})\n" for n in range(40))
    counted = "s40 = Range (start, limit, step)\n"
    for body in (doubled, counted):
        text = (
            '<ir_version: 10, opset_import: ["" : 18]>\ng (float[b, 4] x) => (int64[n] y)\n'
            f"<int64 start = {{0}}, int64 limit = {{1073741824}}, int64 step = {{1}}>\n{{\n{body}y = Identity (s40)\n}}"
        )
        onnx.save(onnx.parser.parse_model(text), tmp_path / "model.onnx")
        assert _most_worked_out(load(tmp_path / "model.onnx")) > MOST_WORKED_OUT
        assert audit(tmp_path / "model.onnx").clean
