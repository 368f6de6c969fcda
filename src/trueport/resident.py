"""The memory of this process: what of it are pages of files, which can be given back and read again."""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
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
    size = os.fstat(file).st_size
    if not size or not Path("/proc/self/maps").exists():
        return ""
    with mmap.mmap(file, min(size, mmap.PAGESIZE), access=mmap.ACCESS_READ) as probe:
        address = np.frombuffer(probe, np.uint8, 1).ctypes.data
        for (span, place, _), _ in _listed("maps"):
            start, end = _edges(span)
            if start <= address < end:
                return place
    return ""


Mapping = tuple[str, str, str]
"""Addresses as the system lists them, the file as ``mapped_as`` names it, and the rights and the place in it."""


def release(places: Iterable[str], unwritten: set[Mapping] | None = None) -> None:
    """Give back the mapped pages of files, named by ``mapped_as``, that nobody wrote to.

    Args:
        places: the files.
        unwritten: mappings in which a former call found no page that was written to, where this call adds more and takes
            away those that ended. They are not looked at again: the system takes far longer to tell what was written
            than to give it back, and meanwhile others read on.
    """
    wanted, known = set(places) - {""}, set() if unwritten is None else unwritten
    mappings = _present(wanted)
    known &= mappings  # another mapping may come to lie where one was
    if not mappings <= known:
        known |= _clean(_listed("smaps", wanted))
        mappings = _present(wanted)  # telling takes long: what ended meanwhile may be somebody's memory by now
    for span, *_ in mappings & known:
        start, end = _edges(span)
        _alone().madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), DONTNEED)


def _present(wanted: set[str]) -> set[Mapping]:
    return {mapping for mapping, _ in _listed("maps", wanted)}


def _clean(told: Iterable[tuple[Mapping, list[bytes]]]) -> set[Mapping]:
    """The mappings of which every page is the file's own.

    A private page that was written to is anonymous by now, in memory or swapped out, and is nowhere else. ONNX Runtime maps
    weights so that it could write to them, and does not.
    """
    found: dict[Mapping, set[bytes]] = {}
    for mapping, words in told:
        if words[1:2] == [b"0"]:
            found.setdefault(mapping, set()).add(words[0])
    return {mapping for mapping, none in found.items() if {b"Anonymous:", b"Swap:"} <= none}


def _edges(span: str) -> tuple[int, int]:
    start, end = span.split("-")
    return int(start, 16), int(end, 16)


def _listed(name: str, wanted: set[str] | None = None) -> Iterator[tuple[Mapping, list[bytes]]]:
    """The lines, in words, of a list of this process's mappings that are about those files, or about all."""
    mapping = ("", "", "")
    # In bytes: a file's name may hold anything, such as what text would take for an end of line. The system escapes \n.
    for line in _read(name).split(b"\n"):
        words = line.split()
        if words and b"-" in words[0]:  # a mapping: its addresses, rights, offset, device, inode and file
            span, rights, offset, device, inode = (word.decode() for word in words[:5])
            mapping = (span, f"{device} {inode}", f"{rights} {offset}")
        if words and (wanted is None or mapping[1] in wanted):
            yield mapping, words


@cache
def _alone() -> ctypes.PyDLL:
    """C's functions, in which no other thread of Python's runs: between a list and the advice little ends and begins."""
    return ctypes.PyDLL(None)


def _read(name: str) -> bytes:
    if name != "maps":  # it takes long, and the others run on
        return Path("/proc/self", name).read_bytes()
    descriptor, parts, room = os.open(f"/proc/self/{name}", os.O_RDONLY), [b""], ctypes.create_string_buffer(1 << 16)
    try:
        while (count := _alone().read(descriptor, room, len(room))) > 0:
            parts.append(room.raw[:count])
    finally:
        _alone().close(descriptor)  # os.close lets others run
    return b"".join(parts)


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
