"""Pages of files are given back, all but what was written to, and without looking at the same mapping twice."""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

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
    assert _given_back(places, known) > 0.9 * SIZE and asked == ["maps", "maps", "smaps", "maps"] and len(known) == 2
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


def test_a_mapping_that_ended_is_forgotten(file: Path) -> None:
    """Another one comes to lie where it was, and is written to."""
    places, known = {mapped_as(file)}, set[Mapping]()
    numbers = _mapped(file)
    assert _given_back(places, known) > 0.9 * SIZE and len(known) == 1
    del numbers
    release(places, known)
    assert not known
    numbers = _mapped(file)
    numbers[:] = 7
    release(places, known)
    assert (numbers == 7).all()


def test_a_mapping_that_ends_while_it_is_looked_at_is_left(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its addresses may be somebody's memory by then; to tell what was written to takes long."""
    places, known, held = {mapped_as(file)}, set[Mapping](), [_mapped(file)]
    listed, advised = module._listed, []

    def ending(name: str, wanted: set[str]) -> list[Any]:
        told = list(listed(name, wanted))
        if name == "smaps":
            held.clear()
        return told

    monkeypatch.setattr(module, "_listed", ending)
    monkeypatch.setattr(
        module,
        "_alone",
        lambda: SimpleNamespace(read=alone.read, close=alone.close, madvise=lambda *a: advised.append(a)),
    )
    alone = ctypes.PyDLL(None)
    release(places, known)
    assert not held and not advised


@pytest.mark.parametrize("swap", [0, 4])
def test_what_was_written_to_and_swapped_out_stays(swap: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = "7f0000000000-7f0000001000 rw-p 00000000 fe:00 12       /w\n"
    told = {
        "maps": mapping,
        "smaps": f"{mapping}Rss:  0 kB\nAnonymous:    0 kB\nSwap:      {swap} kB\nVmFlags: rd wr\n",
    }
    advised: list[Any] = []
    monkeypatch.setattr(module, "_read", lambda name: told[name].encode())
    monkeypatch.setattr(module, "_alone", lambda: SimpleNamespace(madvise=lambda *a: advised.append(a)))
    release({"fe:00 12"})
    assert len(advised) == (swap == 0)


@pytest.mark.parametrize(
    "name", [b"a b (deleted)", b"a\nb", b"a\x0bb c", b"a\x0c\x0c7f00-7f01 rw-p 0 fe:00 12 x", b"a\xff\x85"]
)
def test_files_of_any_name(name: bytes, file: Path) -> None:
    """Also where they are not those that are looked for."""
    odd = Path(os.fsdecode(os.path.join(os.fsencode(file.parent), name)))
    odd.write_bytes(b"\x01" * SIZE)
    numbers, other = _mapped(odd), _mapped(file)
    assert len({mapped_as(odd), mapped_as(file), ""}) == 3
    assert _given_back({mapped_as(odd)}, set()) > 0.9 * SIZE
    odd.unlink()
    assert _given_back({mapped_as(file)}, set()) > 0.9 * SIZE and numbers.all() and other.all()
