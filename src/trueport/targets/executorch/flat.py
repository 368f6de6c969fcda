"""What a ``.ptd`` says of itself, followed before the runtime does, which trusts every offset in it and ends the process."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trueport.errors import ArtifactError

IDENTIFIER, MAGIC = b"FT01", b"FH01"
"""The flatbuffer's, at byte 4, and the header's, at byte 8 (extension/flat_tensor/serialize)."""
HEADER = struct.Struct("<4sIQQQQ")
"""Magic, header length, where the flatbuffer begins and its size, where the segments begin and their size."""
TYPES = 45
"""Scalar types that ExecuTorch counts (schema/scalar_type.fbs)."""


def check_data(path: Path) -> None:
    """Refuse what is no ``.ptd``, or not the whole of one.

    Raises:
        ArtifactError: one line says so.
    """
    with _opened(path) as data:
        list(_entries(data))


def stored(path: Path) -> dict[str, bytes]:
    """What a ``.ptd`` holds, by name.

    Raises:
        ArtifactError: as ``check_data``.
    """
    with _opened(path) as data:
        return {name: data[start:end] for name, start, end in _entries(data)}


@contextmanager
def _opened(path: Path) -> Iterator[mmap.mmap]:
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except (struct.error, ValueError) as error:
        raise ArtifactError(f"{path.name} is no file of weights, or cut short or broken", "Export again.") from error


def _entries(data: mmap.mmap) -> Iterator[tuple[str, int, int]]:
    """Names, and where their bytes begin and end; ValueError or struct.error where something lies outside.

    Fields as flat_tensor.fbs numbers them.
    """
    magic, _, begin, size, base, total = HEADER.unpack_from(data, 8)
    if data[4:8] != IDENTIFIER or magic != MAGIC or begin + size > len(data) or base + total > len(data):
        raise ValueError
    buffer = _Buffer(data, begin + size)
    root = buffer.follow(0)
    segments = [(buffer.number(table, 0, "Q"), buffer.number(table, 1, "Q")) for table in buffer.tables(root, 1)]
    if any(start + count > total for start, count in segments):
        raise ValueError
    for entry in buffer.tables(root, 2):
        index, name = buffer.number(entry, 1, "I"), buffer.vector(entry, 0, 1, ends=True)
        if index >= len(segments) or name is None:
            raise ValueError
        layout = buffer.field(entry, 2, 4)
        if layout:
            table = buffer.follow(layout)
            places = [buffer.vector(table, 1, 4), buffer.vector(table, 2, 1)]
            ranks = [0 if place is None else place[1] for place in places]
            order = b"" if places[1] is None else data[places[1][0] : places[1][0] + ranks[1]]
            kind = buffer.number(table, 0, "b")
            if not 0 <= kind < TYPES or ranks[0] != ranks[1] or sorted(order) != list(range(ranks[0])):
                raise ValueError
        start, count = segments[index]
        yield data[name[0] : sum(name)].decode(), base + start, base + start + count


class _Buffer:
    """A flatbuffer of which nothing is read past its ``end``."""

    def __init__(self, data: mmap.mmap, end: int) -> None:
        self.data, self.end = data, end

    def read(self, kind: str, place: int) -> int:
        """A number; ValueError where it is not all there."""
        form = f"<{kind}"
        if place < 0 or place + struct.calcsize(form) > self.end:
            raise ValueError
        return int(struct.unpack_from(form, self.data, place)[0])

    def follow(self, place: int) -> int:
        """Where the offset at a place leads to."""
        return place + self.read("I", place)

    def field(self, table: int, number: int, size: int) -> int:
        """Where a field of a table is; 0 where it is absent."""
        entries = table - self.read("i", table)
        length, width = self.read("H", entries), self.read("H", entries + 2)
        if entries + length > self.end or table + width > self.end:
            raise ValueError
        offset = self.read("H", entries + 4 + 2 * number) if 6 + 2 * number <= length else 0
        if offset and offset + size > width:
            raise ValueError
        return table + offset if offset else 0

    def number(self, table: int, number: int, kind: str) -> int:
        """A field's value; 0 where it is absent."""
        place = self.field(table, number, struct.calcsize(f"<{kind}"))
        return self.read(kind, place) if place else 0

    def vector(self, table: int, number: int, width: int, *, ends: bool = False) -> tuple[int, int] | None:
        """Where a field's entries begin and how many they are; a text's ``ends`` with a zero. None where it is absent."""
        place = self.field(table, number, 4)
        if not place:
            return None
        start = self.follow(place)
        count = self.read("I", start)
        if start + 4 + count * width + ends > self.end or (ends and self.data[start + 4 + count]):
            raise ValueError
        return start + 4, count

    def tables(self, table: int, number: int) -> Iterator[int]:
        """Where the tables of a list are."""
        found = self.vector(table, number, 4)
        for index in range(found[1] if found else 0):
            yield self.follow(found[0] + 4 * index)  # type: ignore[index]
