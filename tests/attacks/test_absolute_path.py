"""Weights that lie at an absolute path: a graph must not read the machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import making


def test_absolute_path_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 64)
    path = making.folder_with(making.external(str(secret)), tmp_path / "model")
    making.refused(path, "outside the graph's folder", monkeypatch, capsys)
