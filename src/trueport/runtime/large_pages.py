"""Weights in large pages: a step that streams through them looks up 2 MB at once in place of 4 kB."""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from trueport.resident import advise

LEAST = 16 << 20
"""About as many bytes as a processor knows the small pages of; less is left alone."""
COLLAPSE = 25
"""MADV_COLLAPSE of Linux, see madvise(2); since 6.1, an error before."""
PRESENT = 63
"""The bit of a small page in /proc/self/pagemap that tells whether it is in memory."""
SETTINGS = Path("/sys/kernel/mm/transparent_hugepage")
SELF = Path("/proc/self")


@contextmanager
def large_pages() -> Iterator[None]:
    """Memory that is filled within, and still full behind it, lies in large pages from then on, where the system can.

    What it holds stays as it is, at the same addresses; it takes no more memory than before, as what is filled in part is
    left alone. Nothing happens where the administrator has turned large pages off, or for less than ``LEAST`` bytes.
    """
    size = _size()
    if not size:
        yield
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # what the allocator keeps for later looks as full as what is in use
        libc.malloc_trim(ctypes.c_size_t(0))
    before = _full(size)
    yield
    pages = np.setdiff1d(_full(size), before, assume_unique=True)
    if len(pages) * size < LEAST:
        return
    for run in np.split(pages, np.flatnonzero(np.diff(pages) > 1) + 1):
        # What another thread has given back meanwhile is refused, and no harm.
        advise(int(run[0]) * size, len(run) * size, COLLAPSE)


def _size() -> int:
    """Bytes of a large page; 0 where there are none, or the system does not tell what is in memory."""
    try:
        (SELF / "pagemap").open("rb").close()
        off = "[never]" in (SETTINGS / "enabled").read_text()
        return 0 if off else int((SETTINGS / "hpage_pmd_size").read_text())
    except OSError:
        return 0


def _full(size: int) -> np.ndarray:
    """Which multiples of ``size`` begin as many bytes that are all in memory, may be written to and are no file's."""
    small, found = size // mmap.PAGESIZE, [np.empty(0, np.int64)]
    with (SELF / "pagemap").open("rb", buffering=0) as present:
        for line in (SELF / "maps").read_text().splitlines():
            addresses, rights, _, _, inode, *name = line.split(maxsplit=5)
            if not rights.startswith("rw-p") or inode != "0" or name not in ([], ["[heap]"]):
                continue
            start, end = (int(address, 16) for address in addresses.split("-"))
            first, last = -(-start // size), end // size
            if first < last:
                present.seek(first * small * 8)
                told = np.frombuffer(present.read((last - first) * small * 8), np.uint64)
                told = told[: len(told) // small * small].reshape(-1, small)  # the system may tell of fewer
                found.append(first + np.flatnonzero((told >> np.uint64(PRESENT)).all(axis=1)))
    return np.concatenate(found)
