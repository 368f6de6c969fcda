"""What an export tells while it works: its phase, and in phases that move bytes how many of how many."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

Progress = Callable[[str], None]
"""Called with the name of each phase as it starts."""
BytesDone = Callable[[int, int], None]
"""Called with the bytes that are done in this phase, and all that it will move."""


class Meter:
    """Counts the bytes of one phase after the other."""

    def __init__(self, tell: Progress | None = None, bytes_done: BytesDone | None = None) -> None:
        self.tell = tell or (lambda phase: None)
        self.bytes_done = bytes_done or (lambda done, total: None)
        self.done = self.total = 0

    def start(self, phase: str, total: int) -> None:
        """A phase that will move ``total`` bytes begins."""
        self.done, self.total = 0, total
        self.tell(phase)
        self.bytes_done(0, total)

    def add(self, count: int) -> None:
        """So many more bytes are done."""
        self.done += count
        self.bytes_done(self.done, self.total)


class Counted:
    """A file that tells of the bytes that are written to it, in pieces between which Ctrl-C is heard."""

    PIECE = 64 * 1024 * 1024

    def __init__(self, stream: IO[bytes], told: Callable[[int], None]) -> None:
        self.stream, self.told = stream, told

    def write(self, content: bytes | memoryview) -> int:
        """Write all of it."""
        view = memoryview(content)
        for start in range(0, len(view), self.PIECE):
            piece = view[start : start + self.PIECE]
            self.stream.write(piece)
            self.told(len(piece))
        return len(view)
