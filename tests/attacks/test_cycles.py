"""Graphs that run in a circle."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.attacks import making


def test_cycle_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    model = making.right()
    model.graph.node[0].input[1] = "weights"
    making.refused(making.folder_with(model, tmp_path / "model"), "in a circle", monkeypatch, capsys)


def test_node_that_reads_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    model.graph.node.add(op_type="Identity", name="me", input=["loop"], output=["loop"])
    making.refused(making.folder_with(model, tmp_path / "model"), "in a circle at node me", monkeypatch, capsys)


def test_circle_through_a_branch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The branch of an If reads what comes after the If."""
    model = making.right()
    branch = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", ["weights"], ["b"])],
        "b",
        [],
        [onnx.helper.make_tensor_value_info("b", 1, None)],
    )
    condition = onnx.helper.make_tensor("yes", onnx.TensorProto.BOOL, [], [True])
    model.graph.initializer.append(condition)
    model.graph.node.append(onnx.helper.make_node("If", ["yes"], ["x2"], then_branch=branch, else_branch=branch))
    model.graph.node[2].input[0] = "x2"
    making.refused(making.folder_with(model, tmp_path / "model"), "in a circle", monkeypatch, capsys)


def test_value_that_two_nodes_give_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    model.graph.node.add(op_type="Identity", input=["x"], output=["scores"])
    making.refused(
        making.folder_with(model, tmp_path / "model"), "two nodes give the value scores", monkeypatch, capsys
    )
