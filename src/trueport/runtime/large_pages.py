"""Weights in large pages: a step that streams through them looks up 2 MB at once in place of 4 kB."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PAGE = 2 << 20
"""Bytes of a large page on x86-64, and of one on arm64 whose small ones have 4 kB."""
LEAST = 16 << 20
"""The processor remembers where the small pages of about so many bytes lie; less gains nothing."""
HUGEPAGE, COLLAPSE = 14, 25
"""MADV_HUGEPAGE and MADV_COLLAPSE of Linux, see madvise(2); the second is there since 6.1, and needs no daemon to do it."""
MAPS = Path("/proc/self/maps")
SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
Span = tuple[int, int]


@contextmanager
def large_pages() -> Iterator[None]:
    """Private memory that is taken within, and still held behind it, lies in large pages from then on, where the system can.

    What it holds stays as it is, at the same addresses; only whole large pages of it are moved. Nothing happens where the
    administrator has turned large pages off, or for less than ``LEAST`` bytes.
    """
    if not SETTING.exists() or "[never]" in SETTING.read_text():
        yield
        return
    before = _private()
    yield
    taken = [span for span in map(_whole, _without(_private(), before)) if span[0] < span[1]]
    if sum(end - start for start, end in taken) < LEAST:
        return
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    for start, end in taken:
        # A kernel that knows only the first does it by itself, later. What another thread has given back is an error.
        advise(start, end - start, HUGEPAGE)
        advise(start, end - start, COLLAPSE)


def _private() -> list[Span]:
    """Addresses of memory that is no file's and may be written to, in ascending order."""
    spans = []
    for line in MAPS.read_text().splitlines():
        addresses, rights, _, _, inode, *name = line.split(maxsplit=5)
        if rights.startswith("rw") and rights.endswith("p") and inode == "0" and (not name or name[0] == "[heap]"):
            start, end = (int(address, 16) for address in addresses.split("-"))
            spans.append((start, end))
    return spans


def _without(spans: list[Span], others: list[Span]) -> Iterator[Span]:
    """What ``others`` leave of ``spans``; both in ascending order, and neither overlaps itself."""
    same = set(others)
    for start, end in (span for span in spans if span not in same):
        for other, stop in others:
            if stop > start and other < end:
                if other > start:
                    yield start, other
                start = max(start, stop)
        if start < end:
            yield start, end


def _whole(span: Span) -> Span:
    """Its whole large pages; the end lies before the start where it has none."""
    return -(-span[0] // PAGE) * PAGE, span[1] // PAGE * PAGE
