"""Weights that are a link to a file elsewhere, or lie in a folder that is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import making


def test_link_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 64)
    path = making.folder_with(making.external("data"), tmp_path / "model")
    (path.parent / "data").symlink_to(tmp_path / "secret")
    making.refused(path, "is a link", monkeypatch, capsys)


def test_linked_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "data").write_bytes(b"x" * 64)
    path = making.folder_with(making.external("sub/data"), tmp_path / "model")
    (path.parent / "sub").symlink_to(tmp_path / "elsewhere")
    making.refused(path, "is a link", monkeypatch, capsys)


def test_link_to_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = making.folder_with(making.external("data"), tmp_path / "model")
    (path.parent / "data").symlink_to(path.parent / "data")
    making.refused(path, "model.onnx", monkeypatch, capsys)


def test_a_hub_cache_is_none(tmp_path: Path) -> None:
    """There the graph and its data are links into one folder of blobs."""
    from trueport.graphs.loading import check

    blobs = tmp_path / "blobs"
    blobs.mkdir()
    (blobs / "data").write_bytes(b"\0" * 64)
    (blobs / "graph").write_bytes(making.external("model.onnx_data").SerializeToString())
    snapshot = tmp_path / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (snapshot / "model.onnx").symlink_to(blobs / "graph")
    (snapshot / "model.onnx_data").symlink_to(blobs / "data")
    check(snapshot / "model.onnx")
