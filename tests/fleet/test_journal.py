"""The journal and its lock."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from trueport.errors import StorageError, TrueportError
from trueport.fleet import journal
from trueport.fleet.journal import JOURNAL, Journal, is_locked, locked, read_journal


def _names(state: Path) -> list[str]:
    return [event["name"] for event in read_journal(state)]


def test_half_a_line_at_the_end_is_removed(tmp_path: Path) -> None:
    first = Journal(tmp_path)
    first.write("started", name="one")
    first.write("started", name="two – ünïcode")
    first.close()
    with (tmp_path / JOURNAL).open("ab") as file:
        file.write(b'{"event": "finis')
    assert _names(tmp_path) == ["one", "two – ünïcode"]
    second = Journal(tmp_path)
    second.write("started", name="three")
    second.close()
    assert _names(tmp_path) == ["one", "two – ünïcode", "three"]


@pytest.mark.parametrize(
    "line",
    [
        b"{not json}", b"3", b"{}", b"\xff", b'{"event": 3}', b'{"event": "run"}', b'{"event": "ended"}',
        b'{"event": "finished", "name": "one", "key": "k"}', b'{"event": "started"}', b'{"event": "retry", "name": "one"}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_told(tmp_path: Path, line: bytes) -> None:
    (tmp_path / JOURNAL).write_bytes(b'{"event": "note"}\n' + line + b'\n{"event": "note"}\n')
    with pytest.raises(StorageError, match="jsonl:2 is damaged"):
        Journal(tmp_path)


def test_a_full_disk_loses_no_whole_line(tmp_path: Path) -> None:
    opened = Journal(tmp_path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(StorageError, match="cannot be written"):
            for number in range(100):
                opened.write("started", name=str(number))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        opened.close()
    kept = _names(tmp_path)
    assert len(kept) > 5 and kept == [str(number) for number in range(len(kept))]
    again = Journal(tmp_path)
    again.write("started", name="after")
    again.close()
    assert _names(tmp_path) == [*kept, "after"]


def test_the_lock_is_the_workers_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is gone holds its plan as long as one of its workers lives."""
    plan = tmp_path / "fleet.toml"
    assert not is_locked(tmp_path)
    code = (
        "import os, subprocess, sys; from pathlib import Path; from trueport.fleet.journal import locked\n"
        "with locked(Path(sys.argv[1]), Path('x')) as lock:\n"
        "    child = subprocess.Popen(['sleep', '60'], pass_fds=(lock,), stdout=-3, stderr=-3)\n"
        "    print(child.pid, flush=True); os._exit(0)"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True)
    try:
        assert is_locked(tmp_path)
        monkeypatch.setattr(journal, "ENDING", 0.2)
        with (
            pytest.raises(TrueportError, match=r"run by the workers of process \d+, which is gone"),
            locked(tmp_path, plan),
        ):
            pass
    finally:
        os.kill(int(done.stdout), 9)
    monkeypatch.undo()
    with locked(tmp_path, plan):
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
