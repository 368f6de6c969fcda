"""A checkpoint's file into an artefact: cloned, linked or copied; never read into memory."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from trueport.errors import ArtifactError

MODES = ("auto", "link", "copy")
FICLONE = 0x40049409
"""ioctl_ficlone(2): the same blocks under a second file, copied when one of the two is written."""
PIECE = 64 * 1024 * 1024
"""Bytes handed to the kernel at a time: progress is told, and Ctrl-C heard, between two."""
BUFFER = 4 * 1024 * 1024
"""Bytes in memory where the kernel cannot copy from file to file."""
NO_COPY_RANGE = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM)
"""What copy_file_range(2) says across file systems, on old kernels and in sandboxes."""
Told = Callable[[int], None]
"""Called with bytes as they are done."""


def bring(source: Path, target: Path, mode: str, told: Told) -> str:
    """``source`` as ``target``, with its time of modification; returns ``clone``, ``link`` or ``copy``.

    Raises:
        ArtifactError: a link was asked for and the file system makes none.
        OSError: the disk is full.
    """
    source = Path(os.path.realpath(source))
    if mode == "link":
        _link(source, target)
        told(source.stat().st_size)
        return "link"
    with source.open("rb", buffering=0) as reading, target.open("xb", buffering=0) as writing:
        stat = os.fstat(reading.fileno())
        cloned = mode == "auto" and _clone(reading, writing)
        if cloned:
            told(stat.st_size)
        else:
            os.truncate(writing.fileno(), stat.st_size)
            for start, end in _extents(reading.fileno(), stat.st_size):
                copy_range(reading, start, writing, start, end - start, told)
    os.utime(target, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return "clone" if cloned else "copy"


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        # Not the target's own path: that is the staging folder's, which will be gone.
        apart = "it and OUT lie on different file systems"
        reason = apart if error.errno == errno.EXDEV else error.strerror
        raise ArtifactError(f"{source} cannot be hard-linked: {reason}", "Give --weights copy, or auto.") from error


def _clone(reading: IO[bytes], writing: IO[bytes]) -> bool:
    try:
        fcntl.ioctl(writing.fileno(), FICLONE, reading.fileno())
    except OSError:
        return False
    return True


def _extents(descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """Where a file holds data; a hole stays a hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(descriptor, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data behind ``end``
                return
            start = end
        try:
            end = os.lseek(descriptor, start, os.SEEK_HOLE)
        except OSError:
            end = size
        yield start, end


def copy_range(reading: IO[bytes], start: int, writing: IO[bytes], place: int, count: int, told: Told) -> None:
    """``count`` bytes from ``start`` of one file to ``place`` of another.

    Raises:
        ArtifactError: the file that is read ended before.
    """
    within_kernel = hasattr(os, "copy_file_range")
    done = 0
    while done < count:
        wanted = min(PIECE, count - done)
        moved = 0
        if within_kernel:
            try:
                moved = os.copy_file_range(reading.fileno(), writing.fileno(), wanted, start + done, place + done)
            except OSError as error:
                if error.errno not in NO_COPY_RANGE:
                    raise
                within_kernel = False
                continue
        else:
            piece = os.pread(reading.fileno(), min(BUFFER, wanted), start + done)
            moved = write_all(writing.fileno(), piece, place + done)
        if not moved:
            raise ArtifactError(f"{reading.name} became shorter while it was copied", "Export again.")
        done += moved
        told(moved)


def write_all(descriptor: int, piece: bytes | memoryview, place: int) -> int:
    """Write the whole piece, which the kernel may take in parts; returns its length."""
    done = 0
    while done < len(piece):
        done += os.pwrite(descriptor, piece[done:], place + done)
    return done
