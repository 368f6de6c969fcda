"""Tensors of a size that no machine holds, in a file of a hundred bytes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import making


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
