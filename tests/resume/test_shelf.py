"""What is kept comes back whole or not at all, and does not pile up."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from trueport.errors import ArtifactError, CaptureError, ProofError
from trueport.interface import Interface
from trueport.resume import shelf as home
from trueport.resume.shelf import ENDING, Shelf, left_for_another_time, place_of
from trueport.roles import Component

FACTS = {"patches": ["a.b"], "notes": ["a line"]}
CONTENT = b"graph\n" + bytes(range(256))


def component(name: str = "encoder") -> Component:
    return Component(name, name, torch.nn.Identity(), Interface((), (), ()), {})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "trueport"


def entries(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def kept(folder: Path, *names: str) -> Shelf:
    shelf = Shelf("key", folder)
    for name in names or ("encoder",):
        shelf.put("onnx", component(name), FACTS, CONTENT)
    return shelf


def test_another_process_finds_what_was_kept(folder):
    shelf = kept(folder, "encoder", "decoder")
    assert shelf.names == ("encoder", "decoder")
    found = Shelf("key", folder).find("onnx", component())
    assert found is not None
    assert (found.content, found.patches, found.notes) == (CONTENT, ("a.b",), ("a line",))
    assert found.when == time.strftime("%H:%M", time.localtime(found.since))
    assert Shelf("other", folder).find("onnx", component()) is None
    assert folder.stat().st_mode & 0o777 == 0o700


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-7] ^= 4
    path.write_bytes(content)


def _mislabel(path: Path) -> None:
    """Whole, and of no form that this version writes."""
    import hashlib

    path.write_bytes(hashlib.sha256(b"[]\n").hexdigest().encode() + b"\n[]\n")


@pytest.mark.parametrize(
    "damage",
    [_flip, lambda path: os.truncate(path, 100), lambda path: path.write_bytes(b""), _mislabel, os.unlink],
)
def test_a_damaged_component_is_none(folder, damage):
    kept(folder)
    damage(next(folder.glob(f"*{ENDING}")))
    shelf = Shelf("key", folder)
    assert shelf.find("onnx", component()) is None
    shelf.put("onnx", component(), FACTS, CONTENT)
    assert shelf.find("onnx", component()) is not None


def test_what_the_target_cannot_read_is_none(folder):
    class Target:
        name = "onnx"

        def restored(self, content: bytes, part: Component) -> Any:
            raise ValueError("of another kind")

    assert kept(folder).restored(Target(), component()) is None  # type: ignore[arg-type]


def test_nothing_is_taken_where_others_may_write(folder):
    kept(folder)
    folder.chmod(0o777)
    shelf = Shelf("key", folder)
    assert shelf.find("onnx", component()) is None
    shelf.put("onnx", component("decoder"), FACTS, CONTENT)
    assert len(entries(folder)) == 1


def test_a_full_disk_ends_nothing(folder, monkeypatch):
    shelf = Shelf("key", folder)

    def full(*_: object) -> int:
        raise OSError(28, "full")

    monkeypatch.setattr(Path, "write_bytes", full)
    shelf.put("onnx", component(), FACTS, CONTENT)
    assert shelf.names == () and entries(folder) == []


def test_a_place_that_cannot_be_made_ends_nothing(tmp_path):
    (tmp_path / "file").write_text("")
    shelf = kept(tmp_path / "file" / "cache")
    assert shelf.find("onnx", component()) is None and shelf.names == ()


def test_two_processes_at_once(folder):
    """Each writes a file of its own first; the first to end takes away what the second then makes anew."""
    first, second = kept(folder), kept(folder)
    assert len(entries(folder)) == 1
    first.clear()
    assert second.find("onnx", component()) is None and second.names == ()
    second.clear()


def test_what_is_old_or_too_much_goes(folder, monkeypatch):
    shelf = kept(folder, "a", "b", "c")
    now = time.time()
    paths = [shelf._path("onnx", component(name)) for name in "abc"]
    for path, age in zip(paths, (home.DAYS + 1, 2, 1), strict=True):
        os.utime(path, (now - age * 86400,) * 2)
    dead, living = (folder / f".{paths[0].stem}-{pid}" for pid in (999999999, os.getppid()))
    strangers = folder / ".diary-20240229", folder / "old.component"
    for path in (dead, living, *strangers):
        path.write_bytes(b"")
        os.utime(path, (now - (home.DAYS + 1) * 86400,) * 2)
    Shelf("key", folder)
    assert [path.exists() for path in (*paths, dead, living)] == [False, True, True, False, True]
    assert all(path.exists() for path in strangers), "TRUEPORT_CACHE may be a folder with files of the user's"
    monkeypatch.setattr(home, "LARGEST", 1.5 * paths[2].stat().st_size)
    shelf = Shelf("key", folder)
    assert [path.exists() for path in paths] == [False, False, True]
    shelf.put("onnx", component("d"), FACTS, CONTENT)
    assert not shelf._path("onnx", component("d")).exists(), "more than half of all"


def test_how_an_export_ends_decides(folder):
    with left_for_another_time(kept(folder)):
        pass
    assert entries(folder) == []
    for error, words in (
        (KeyboardInterrupt(), "Finished, and kept for the same command: encoder."),
        (ArtifactError("No space left"), "Finished, and kept for the same command: encoder."),
        (CaptureError("it cannot be traced"), ""),
    ):
        with pytest.raises(type(error)), left_for_another_time(kept(folder)):
            raise error
        assert getattr(error, "kept", "") == words
        assert len(entries(folder)) == 1
    with pytest.raises(ProofError), left_for_another_time(kept(folder)):
        raise ProofError("Not proven")
    assert entries(folder) == []


def test_where_it_lies(monkeypatch, tmp_path):
    monkeypatch.setenv("TRUEPORT_CACHE", str(tmp_path))
    assert place_of() == tmp_path
    monkeypatch.delenv("TRUEPORT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert place_of() == tmp_path / "trueport"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert place_of() == Path.home() / ".cache" / "trueport"


def test_a_user_without_a_home_keeps_nothing(monkeypatch, tmp_path):
    """As in a container that runs under a number nobody has given a name to."""
    for name in ("TRUEPORT_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}[number])
    assert place_of() is None
