"""Weights that lie above the folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import making


@pytest.mark.parametrize("location", ["../secret", "onnx/../../secret", "..\\\\secret"])
def test_parent_path_is_refused(
    location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "secret").write_bytes(b"x" * 64)
    path = making.folder_with(making.external(location), tmp_path / "model")
    making.refused(path, "outside the graph's folder", monkeypatch, capsys)
