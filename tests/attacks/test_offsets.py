"""Weights that end behind the end of their file, or lie at no place at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import making


@pytest.mark.parametrize(
    ("offset", "length", "words"),
    [
        (0, 1 << 40, "ends at byte"),
        (1 << 40, 64, "ends at byte"),
        (16, 64, "ends at byte"),
        (0, 32, "its shape needs 64"),
        (-8, 64, "no place in a file"),
    ],
)
def test_offsets_past_the_end_are_refused(
    offset: int, length: int, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    path = making.folder_with(making.external("data", offset, length), tmp_path / "model")
    (path.parent / "data").write_bytes(b"\0" * 72)
    making.refused(path, words, monkeypatch, capsys)


def test_missing_data_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = making.folder_with(making.external("data"), tmp_path / "model")
    making.refused(path, "is missing", monkeypatch, capsys)


def test_two_places_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.external("data")
    model.graph.initializer[0].external_data.add(key="location", value="/etc/passwd")
    path = making.folder_with(model, tmp_path / "model")
    making.refused(path, "says twice", monkeypatch, capsys)
