"""What happened, line by line, on disk before anything follows from it; and the lock that keeps two runs apart."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trueport.errors import StorageError, TrueportError
from trueport.processes import is_alive

JOURNAL = "journal.jsonl"
LOCK = "lock"
FACTS = {
    "run": ("run", "out"), "ended": ("run",), "started": ("name",), "retry": ("name", "reason"),
    "finished": ("name", "key", "url", "status"),
}  # fmt: skip
"""What is read of an event, by its kind: texts."""
ENDING = 30.0
"""Seconds in which the workers of a run that was killed notice it, and end."""


class Journal:
    """An append-only file of JSON lines.

    A process that is killed while it writes leaves half a line at the end, which whoever opens the file next removes.

    Args:
        state: the folder of the fleet, whose lock is held.
    """

    def __init__(self, state: Path) -> None:
        self.path = state / JOURNAL
        self.events = read_journal(state)
        try:
            self.file = self.path.open("ab", buffering=0)
            whole = self.path.read_bytes().rfind(b"\n") + 1
            self.file.truncate(whole)
        except OSError as error:
            raise unwritable(self.path, error) from error

    def write(self, event: str, **facts: Any) -> dict[str, Any]:
        """Append an event; it is on disk when this returns.

        Raises:
            StorageError: the disk is full, or gone; what was written before stands.
        """
        content = {"event": event, "time": round(time.time(), 3), **facts}
        line = json.dumps(content, ensure_ascii=False).encode() + b"\n"
        try:
            written = self.file.write(line)
            if written != len(line):  # a disk that has room for a part of it
                raise OSError(28, "No space left on device")
            os.fsync(self.file.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.events.append(content)
        return content

    def close(self) -> None:
        """No more events."""
        self.file.close()


def read_journal(state: Path) -> list[dict[str, Any]]:
    """The events so far; a half line at the end is none.

    Raises:
        StorageError: it cannot be read, or a line in its middle is not JSON.
    """
    path = state / JOURNAL
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}", "Give another --state.") from error
    events = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                raise ValueError("it is no event")
            for name in FACTS.get(event["event"], ()):
                if not isinstance(event.get(name), str):
                    raise ValueError(f"{event['event']} without {name}")
        except ValueError as error:
            remedy = "Move the file away: artefacts that are in place are found again."
            raise StorageError(f"{path}:{number} is damaged: {error}", remedy) from error
        events.append(event)
    return events


def unwritable(path: Path, error: OSError) -> StorageError:
    """A file of the fleet's state has no room, or no permission."""
    remedy = "Free space or give another --state, and run again: what is done stays done."
    return StorageError(f"{path} cannot be written: {error.strerror}", remedy)


@contextmanager
def locked(state: Path, plan: Path) -> Iterator[int]:
    """Hold the fleet's lock; yields its descriptor.

    Every worker inherits the descriptor, and with it the lock: a run that was killed frees the plan when the last of its
    workers has ended, and not before.

    Raises:
        TrueportError: another run holds it.
    """
    try:
        import fcntl
    except ImportError as error:
        raise TrueportError("A fleet needs POSIX, for its locks and process groups", "Run it there.") from error
    try:
        state.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(state / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable(state / LOCK, error) from error
    try:
        _take(fcntl, descriptor, plan)
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise unwritable(state / LOCK, error) from error
        yield descriptor
    finally:
        os.close(descriptor)


def _take(fcntl: Any, descriptor: int, plan: Path) -> None:
    end = time.monotonic() + ENDING
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace")
        alive = holder.isdigit() and is_alive(int(holder))
        if alive or time.monotonic() > end:
            who = f"process {holder}" if alive else f"the workers of process {holder}, which is gone"
            raise TrueportError(f"{plan} is being run by {who}", "Wait for its end, or give another --state and --out.")
        time.sleep(0.1)


def is_locked(state: Path) -> bool:
    """Whether a run is going on."""
    import fcntl

    try:
        descriptor = os.open(state / LOCK, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
