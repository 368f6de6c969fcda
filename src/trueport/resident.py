"""The memory of this process: what of it are pages of files, which can be given back and read again."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

DONTNEED = 4
"""MADV_DONTNEED of Linux: of a file's pages that nobody wrote to, it loses nothing."""


def resident() -> tuple[int, int]:
    """Bytes of this process in memory, and those of them that are pages of files."""
    pages = Path("/proc/self/statm").read_text().split()
    return int(pages[1]) * mmap.PAGESIZE, int(pages[2]) * mmap.PAGESIZE


def mapped_as(file: int | Path) -> str:
    """Device and inode of a file as the system's list of mappings names it; empty where there is no such list.

    That is not what fstat says on btrfs, whose every subvolume has a device of its own: the file is mapped, and looked for.

    Args:
        file: its path, or a descriptor.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return mapped_as(opened.fileno())
    listed, size = Path("/proc/self/maps"), os.fstat(file).st_size
    if not size or not listed.exists():
        return ""
    with mmap.mmap(file, min(size, mmap.PAGESIZE), access=mmap.ACCESS_READ) as probe:
        address = np.frombuffer(probe, np.uint8, 1).ctypes.data
        for line in listed.read_text().splitlines():
            span, _, _, device, inode = line.split(maxsplit=5)[:5]
            start, end = (int(edge, 16) for edge in span.split("-"))
            if start <= address < end:
                return f"{device} {inode}"
    return ""


Mapping = tuple[str, str]
"""Addresses as the system lists them, and the file as ``mapped_as`` names it."""


def release(places: Iterable[str], unwritten: set[Mapping] | None = None) -> None:
    """Give back the mapped pages of files, named by ``mapped_as``, that nobody wrote to.

    Args:
        places: the files.
        unwritten: mappings in which a former call found no page that was written to, and where this call adds more. They
            are not looked at again: the system takes 50 times as long to tell what was written as to give it back, and
            meanwhile others read on.
    """
    wanted, known = set(places) - {""}, set() if unwritten is None else unwritten
    mappings = {mapping for mapping, _ in _listed("maps", wanted)}
    if not mappings <= known:
        # A private page that was written to is anonymous by now, and is nowhere else. ONNX Runtime maps weights so that
        # it could write to them, and does not.
        told = _listed("smaps", wanted)
        known |= {mapping for mapping, line in told if line.split()[:2] == ["Anonymous:", "0"]}
    for span, _ in mappings & known:
        start, end = (int(address, 16) for address in span.split("-"))
        advise(start, end - start, DONTNEED)


def _listed(name: str, wanted: set[str]) -> Iterator[tuple[Mapping, str]]:
    """The lines of a list of this process's mappings that are about those files."""
    mapping = ("", "")
    for line in Path("/proc/self", name).read_text().splitlines():
        first, *rest = line.split(maxsplit=5)
        if not first.endswith(":"):  # a mapping: its addresses, rights, offset, device, inode and file
            mapping = (first, " ".join(rest[2:4]))
        if mapping[1] in wanted:
            yield mapping, line


def advise(start: int, size: int, advice: int) -> None:
    """Tell the system what to do with ``size`` bytes of memory from ``start`` on, see madvise(2); it may refuse."""
    tell = ctypes.CDLL(None).madvise
    tell.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    tell(start, size, advice)


@contextmanager
def watched(look: Callable[[int, int], None], seconds: float) -> Iterator[None]:
    """Within, ``look`` is told what ``resident`` tells, time and again, in a thread of its own; never where nobody tells.

    Args:
        look: takes bytes in memory, and those of them that are pages of files.
        seconds: between two looks.
    """
    if not Path("/proc/self/statm").exists():
        yield
        return
    done = threading.Event()

    def run() -> None:
        while not done.wait(seconds):
            look(*resident())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
