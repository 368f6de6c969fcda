"""Folders that take another's place in one step, folders that go, and why a place takes none."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
from pathlib import Path

from trueport.errors import ArtifactError

RENAME_EXCHANGE = 2
"""Flag of renameat2(2): swap two paths in one step."""


def remove(folder: Path) -> None:
    """Remove a folder, and what in it is read-only: with its place it has lost its name."""
    shutil.rmtree(folder, ignore_errors=True)
    for place, _, _ in os.walk(folder):
        with contextlib.suppress(OSError):
            os.chmod(place, 0o700)
    shutil.rmtree(folder, ignore_errors=True)


def sync(folder: Path) -> None:
    """Have all of a folder on the disk before it gets its name."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def put_in_place(staging: Path, out: Path) -> None:
    """Swap in one step where the system can: at no moment is ``out`` missing or half there."""
    if not out.exists():
        os.rename(staging, out)
    elif not _exchange(staging, out):
        old = staging.with_name(staging.name + ".old")
        os.rename(out, old)
        os.rename(staging, out)
        remove(old)
    with contextlib.suppress(OSError):
        descriptor = os.open(out.parent, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _exchange(first: Path, second: Path) -> bool:
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return False
    here = -100  # AT_FDCWD: both paths are absolute.
    return bool(renameat2(here, os.fsencode(first), here, os.fsencode(second), RENAME_EXCHANGE) == 0)


def explained(error: OSError, out: Path) -> ArtifactError:
    """Why a folder could not be written to ``out``, and what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ArtifactError(f"No space left for {out}", "Free space, or choose another disk; nothing was written.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ArtifactError(f"{out.parent} cannot be written: {error.strerror}", "Choose another place.")
    if error.errno == errno.EBUSY:  # a mount of the same file system
        return mounted(out)
    if error.errno in (errno.EEXIST, errno.ENOTDIR) and error.filename:
        return ArtifactError(f"{error.filename} is not a folder", "Choose another place; nothing was written.")
    return ArtifactError(f"{out} could not be written: {error}", "Nothing was written.")


def mounted(out: Path) -> ArtifactError:
    """The refusal of a mount point, as a container's volume is."""
    return ArtifactError(
        f"{out} is a mount point, whose place no folder can take", f"Give a folder in it, such as {out / 'model'}."
    )
