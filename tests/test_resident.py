"""Pages of files are given back, all but what was written to, and without looking at the same mapping twice."""

from __future__ import annotations

import mmap
import sys
from pathlib import Path

import numpy as np
import pytest

from trueport import resident as module
from trueport.resident import Mapping, mapped_as, release, resident

SIZE = 32 << 20
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is in memory")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights"
    path.write_bytes(b"\x01" * SIZE)
    return path


def _mapped(path: Path) -> np.ndarray:
    """Its bytes, private, and all of them in memory."""
    with path.open("r+b") as opened:
        memory = mmap.mmap(opened.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    numbers = np.frombuffer(memory, np.uint8)
    assert numbers[:: mmap.PAGESIZE].sum() == SIZE // mmap.PAGESIZE
    return numbers


def _given_back(places: set[str], known: set[Mapping]) -> int:
    before = resident()[1]
    release(places, known)
    return before - resident()[1]


def test_a_mapping_is_looked_at_once(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places, known = {mapped_as(file)}, set[Mapping]()
    numbers = _mapped(file)
    assert _given_back(places, known) > 0.9 * SIZE and len(known) == 1
    listed = module._listed
    asked = []
    monkeypatch.setattr(module, "_listed", lambda name, wanted: asked.append(name) or listed(name, wanted))
    assert numbers[:: mmap.PAGESIZE].all() and _given_back(places, known) > 0.9 * SIZE and asked == ["maps"]
    again = _mapped(file)
    assert _given_back(places, known) > 0.9 * SIZE and asked == ["maps", "maps", "smaps"] and len(known) == 2
    assert (again == 1).all() and (numbers == 1).all()


def test_what_was_written_to_stays(file: Path) -> None:
    places, known = {mapped_as(file)}, set[Mapping]()
    numbers = _mapped(file)
    numbers[SIZE // 2] = 7
    assert _given_back(places, known) < 0.1 * SIZE and not known
    assert numbers[SIZE // 2] == 7 and (file.read_bytes() == b"\x01" * SIZE)


def test_other_files_stay(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(b"\x01" * SIZE)
    kept = _mapped(other)
    assert abs(_given_back({mapped_as(file), ""}, set())) < 0.1 * SIZE and kept.all()
