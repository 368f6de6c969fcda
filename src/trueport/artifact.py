"""The folder that an export writes: staged beside its place, moved there whole, described by its manifest."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trueport.errors import ArtifactError

MANIFEST = "trueport.json"
SCHEMA_VERSION = 1
RENAME_EXCHANGE = 2
"""Flag of renameat2(2): swap two paths in one step."""


@dataclass(frozen=True)
class Artifact:
    """A finished export.

    Attributes:
        folder: where it lies.
        manifest: the content of ``trueport.json``.
        proof: the content of ``proof.json``; None when no proof was asked for.
    """

    folder: Path
    manifest: dict[str, Any]
    proof: dict[str, Any] | None

    @property
    def verdict(self) -> str:
        """``proven``, ``failed`` or ``unproven``."""
        return str(self.manifest["proof"]["verdict"])


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of one of Trueport's folders.

    Raises:
        ArtifactError: there is none, or it cannot be read.
    """
    path = folder / MANIFEST
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder", "Give the folder that `trueport export` wrote.")
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {MANIFEST}", "Give the folder that `trueport export` wrote.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise ArtifactError(f"{path} is not a manifest of Trueport's: {error}", "Export again.") from error
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}, this Trueport reads {SCHEMA_VERSION}",
            "Use the Trueport that wrote it, or export again.",
        )
    return dict(manifest)


def write_json(path: Path, content: Any) -> None:
    """Write JSON that is the same bytes for the same content."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def list_files(folder: Path) -> dict[str, dict[str, Any]]:
    """sha256 and size of every file but the manifest, by relative path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder).as_posix()
        if path.is_file() and relative != MANIFEST:
            found[relative] = {"sha256": sha256(path), "size": path.stat().st_size}
    return found


def sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def changed_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What differs from the manifest, in words; empty when nothing does."""
    found = []
    for name, entry in manifest.get("files", {}).items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            found.append(f"{name} lies outside the folder")
        elif not path.is_file():
            found.append(f"{name} is missing")
        elif path.stat().st_size != entry["size"] or sha256(path) != entry["sha256"]:
            found.append(f"{name} is not the file that was exported (sha256 differs)")
    return found


def check_place(out: Path, *, force: bool) -> None:
    """Refuse a place that must not be overwritten.

    Raises:
        ArtifactError: ``out`` exists and is not ours, or is ours and ``force`` is off.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ArtifactError(f"{out} exists and is not a folder", "Choose another place.")
    if not out.exists() or not any(out.iterdir()):
        return
    if not (out / MANIFEST).is_file():
        raise ArtifactError(
            f"{out} exists and holds files that Trueport did not write", "Choose another place, or empty it yourself."
        )
    if not force:
        raise ArtifactError(f"{out} holds an earlier export", "Give --force to replace it.")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends, and vanishes when it fails.

    A process killed inside leaves ``out`` as it was; its staging folder is removed by the next export to that place.

    Raises:
        ArtifactError: the disk is full, or the place cannot be written.
    """
    out = out.absolute()
    _sweep(out)
    staging = out.parent / f".{out.name}.trueport-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        yield staging
        _sync(staging)
        _put_in_place(staging, out)
    except OSError as error:
        raise _explained(error, out) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _sweep(out: Path) -> None:
    """Remove staging folders of processes that are gone."""
    for path in out.parent.glob(f".{out.name}.trueport-*"):
        pid = path.name.rsplit("-", 1)[-1]
        if pid.isdigit() and not _alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)


def _alive(pid: int) -> bool:
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(folder: Path) -> None:
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _put_in_place(staging: Path, out: Path) -> None:
    """Swap in one step where the system can: at no moment is ``out`` missing or half there."""
    if not out.exists():
        os.rename(staging, out)
    elif not _exchange(staging, out):
        old = staging.with_name(staging.name + ".old")
        os.rename(out, old)
        os.rename(staging, out)
        shutil.rmtree(old, ignore_errors=True)
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


def _explained(error: OSError, out: Path) -> ArtifactError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return ArtifactError(f"No space left for {out}", "Free space, or choose another disk; nothing was written.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ArtifactError(f"{out.parent} cannot be written: {error.strerror}", "Choose another place.")
    return ArtifactError(f"{out} could not be written: {error}", "Nothing was written.")
