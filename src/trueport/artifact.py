"""The folder that an export writes: staged beside its place, moved there whole, described by its manifest."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from trueport.errors import ArtifactError
from trueport.form import check_form
from trueport.interface import Interface
from trueport.interrupts import held
from trueport.moving import explained, mounted, put_in_place, remove, sync
from trueport.processes import is_alive
from trueport.progress import Meter
from trueport.words import is_unicode

MANIFEST = "trueport.json"
SCHEMA_VERSION = 1
HASHED = 16 * 2**30
"""Bytes of the largest folder whose every file is hashed by an export that is not paranoid."""
LARGE = 2**30
"""Bytes past which a file of a larger folder is known by its size and time of modification instead."""
LONGEST = 220, 3900
"""Bytes of a place's name, and of its whole path: what is staged beside it, and lies in it, has a longer one."""
_OWN = set[Path]()
"""Staging folders that this process works in."""
_CLAIMS = threading.Lock()
"""Threads take names for theirs one after the other."""


@dataclass(frozen=True)
class Artifact:
    """A finished export.

    Attributes:
        folder: where it lies.
        manifest: the content of ``trueport.json``.
        proof: the content of ``proof.json``; None when no proof was asked for.
        notes: what a user may want to know of the way that was taken, and what no file holds.
    """

    folder: Path
    manifest: dict[str, Any]
    proof: dict[str, Any] | None
    notes: tuple[str, ...] = ()

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
    _check_name(folder)
    if not folder.is_dir():
        raise ArtifactError(f"{folder} is not a folder", "Give the folder that `trueport export` wrote.")
    if not path.is_file():
        raise ArtifactError(f"{folder} holds no {MANIFEST}", "Give the folder that `trueport export` wrote.")
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["schema_version"]
        if version == SCHEMA_VERSION:
            check_form(manifest)
    except (ValueError, KeyError, TypeError, UnicodeDecodeError, RecursionError) as error:
        raise ArtifactError(f"{path} is not a manifest of Trueport's: {error}", "Export again.") from error
    if version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{path} has schema version {version}, this Trueport reads {SCHEMA_VERSION}",
            "Use the Trueport that wrote it, or export again.",
        )
    return dict(manifest)


def described(folder: Path, name: str, entry: Mapping[str, Any]) -> tuple[str, Path, Interface]:
    """Target, file and interface of a manifest's component.

    Raises:
        ArtifactError: the entry lacks one of them, or the folder the file.
    """
    try:
        target, file = str(entry["target"]), PurePosixPath(entry["file"])
        interface = Interface.from_json(entry)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        raise ArtifactError(f"{folder / MANIFEST} describes the component {name} wrongly: {error!r}") from error
    if not (folder / file).is_file():
        raise ArtifactError(f"{folder} lacks {file}", "Export again.")
    return target, folder / file, interface


def check_sizes(folder: Path, manifest: Mapping[str, Any], file: Path) -> None:
    """Refuse a file beside a component's, or that itself, which is not as long as the export wrote it.

    Raises:
        ArtifactError: it was cut, or is another one.
    """
    home = file.parent.relative_to(folder).as_posix()
    for name, entry in manifest["files"].items():
        path = folder / name
        if PurePosixPath(name).parent.as_posix() != home or not path.is_file():
            continue
        size, told = path.stat().st_size, entry.get("size")
        if size != told:
            problem = f"{name} has {size} bytes, and {MANIFEST} says {told}"
            raise ArtifactError(problem, "Copy it again, or export again.")


def write_json(path: Path, content: Any) -> None:
    """Write JSON that is the same bytes for the same content."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def list_files(folder: Path, *, largest: int | None = None, meter: Meter | None = None) -> dict[str, dict[str, Any]]:
    """What the manifest says of every file but itself, by relative path; ``largest`` as in ``file_entry``."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and path != folder / MANIFEST]
    meter = meter or Meter()
    meter.start("hash", sum(path.stat().st_size for path in paths if not _is_larger(path, largest)))
    return {path.relative_to(folder).as_posix(): file_entry(path, largest=largest, told=meter.add) for path in paths}


def largest_hashed(folder: Path, *, paranoid: bool) -> int | None:
    """``largest`` for the files of this folder: None hashes all."""
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return None if paranoid or total <= HASHED else LARGE


def file_entry(
    path: Path, *, largest: int | None = None, told: Callable[[int], None] = lambda count: None
) -> dict[str, Any]:
    """Size and sha256 of one file; of a file past ``largest`` bytes its time of modification instead."""
    stat = path.stat()
    if _is_larger(path, largest):
        return {"size": stat.st_size, "mtime_ns": stat.st_mtime_ns}
    return {"sha256": sha256(path, told), "size": stat.st_size}


def _is_larger(path: Path, largest: int | None) -> bool:
    return largest is not None and path.stat().st_size > largest


def sha256(path: Path, told: Callable[[int], None] = lambda count: None) -> str:
    """Hex digest of a file, read in pieces; ``told`` of their bytes."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as stream:
        while piece := stream.read(1 << 22):
            digest.update(piece)
            told(len(piece))
    return digest.hexdigest()


def is_as_listed(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is the one that a manifest describes."""
    stat = path.stat()
    if stat.st_size != entry.get("size"):
        return False
    if "sha256" not in entry and "mtime_ns" in entry:
        return bool(stat.st_mtime_ns == entry["mtime_ns"])
    return sha256(path) == entry.get("sha256")


def changed_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """What differs from the manifest, in words; empty when nothing does."""
    found = []
    for name, entry in manifest.get("files", {}).items():
        path = folder / name
        if not path.resolve().is_relative_to(folder.resolve()):
            found.append(f"{name} lies outside the folder")
        elif not path.is_file():
            found.append(f"{name} is missing")
        elif not is_as_listed(path, entry):
            kind = "sha256" if "sha256" in entry else "its size or time of modification"
            found.append(f"{name} is not the file that was exported ({kind} differs)")
    if not _is_proven(folder, manifest):
        found.append(f"what {MANIFEST} says is not what proof.json was made for")
    return found + [f"{name} is not in the manifest" for name in unnamed_files(folder, manifest)]


LATER = ("files", "proof", "fleet")
"""What a manifest gets when its proof is there."""


def manifest_digest(manifest: Mapping[str, Any]) -> str:
    """sha256 of what the manifest said when it was proven: what a runtime is fed, and what the proof asked."""
    said = {key: value for key, value in manifest.items() if key not in LATER}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _is_proven(folder: Path, manifest: Mapping[str, Any]) -> bool:
    """Whether ``proof.json`` was made for this manifest; so is none, or one of others, which has no digest."""
    try:
        proof = json.loads((folder / "proof.json").read_text(encoding="utf-8"))
        digest, verdict = proof["manifest_sha256"], proof["verdict"]
    except (OSError, ValueError, TypeError, KeyError):
        return True
    return bool(digest == manifest_digest(manifest) and verdict == manifest.get("proof", {}).get("verdict"))


def unnamed_files(folder: Path, manifest: dict[str, Any]) -> list[str]:
    """Files in the folder that the manifest does not name, itself left out."""
    known = {*manifest.get("files", {}), MANIFEST}
    paths = (path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())
    present = (path.relative_to(folder).as_posix() for path in paths)
    return sorted(name for name in present if name not in known)


def check_place(out: Path, *, force: bool) -> None:
    """Refuse a place that must not be overwritten.

    Raises:
        ArtifactError: ``out`` exists and is not ours, or is ours and ``force`` is off; or its name is no text, or too long.
    """
    _check_name(out.absolute())
    if len(os.fsencode(out.name)) > LONGEST[0] or len(os.fsencode(out.absolute())) > LONGEST[1]:
        raise ArtifactError(f"The name {out.name[:20]}... is too long", "Choose a shorter one.")
    if os.path.ismount(out):
        raise mounted(out)
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ArtifactError(f"{out} exists and is not a folder", "Choose another place.")
    if not out.exists() or not any(out.iterdir()):
        return
    strangers = [MANIFEST]
    if (out / MANIFEST).is_file():
        try:
            strangers = unnamed_files(out, read_manifest(out))
        except ArtifactError:
            strangers = [f"{MANIFEST}, which is not Trueport's"]
    if strangers:
        named = "" if strangers == [MANIFEST] else f" ({strangers[0]})"
        raise ArtifactError(
            f"{out} exists and holds files that Trueport did not write{named}",
            "Choose another place, or empty it yourself.",
        )
    if not force:
        raise ArtifactError(f"{out} holds an earlier export", "Give --force to replace it.")


def _check_name(place: Path) -> None:
    if not is_unicode(str(place)):  # no runtime opens what lies there
        raise ArtifactError(f"The name {place} is not UTF-8", "Rename it, or choose another place.")


@contextmanager
def staged(out: Path, *, replace: bool = True) -> Iterator[Path]:
    """A folder beside ``out`` that takes its place when the block ends, and vanishes when it fails.

    A process killed inside leaves ``out`` as it was; its staging folder is removed by the next export to that place.

    Args:
        out: the place.
        replace: whether an export that appeared there meanwhile may be replaced. Other files never may.

    Raises:
        ArtifactError: the disk is full, or the place cannot be written.
    """
    out = Path(os.path.realpath(out))  # of ``..`` the name and the parent are others: it would be staged within itself
    try:
        with beside(out) as staging:
            yield staging
            sync(staging)
            check_place(out, force=replace)  # its owner may have worked there meanwhile
            with held(too_late=True):  # else it would be told that nothing was written
                put_in_place(staging, out)
                remove(staging)  # what was replaced
    except OSError as error:
        raise explained(error, out) from error


@contextmanager
def beside(out: Path) -> Iterator[Path]:
    """A new folder beside ``out`` which no other thread or process writes to, and which is gone when the block ends.

    While the block runs it is locked: the number in its name says nothing where processes are counted otherwise, as in
    another container.
    """
    out = out.absolute()
    sweep(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    staging, descriptor = _claimed(out), None
    made = True
    try:
        try:
            staging.mkdir()
        except FileExistsError:
            made = False
            raise
        descriptor = os.open(staging, os.O_RDONLY)
        with contextlib.suppress(OSError):  # a file system without locks: the number has to do
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield staging
    finally:
        with held():  # who is impatient presses twice
            if made:
                remove(staging)
            if descriptor is not None:
                os.close(descriptor)
            _OWN.discard(staging)


def _claimed(out: Path) -> Path:
    """A name beside ``out`` that ends with this process's number, and that nothing has yet."""
    with _CLAIMS:
        numbers = itertools.chain([""], (f"{turn}-" for turn in itertools.count(2)))
        names = (out.parent / f".{out.name}.trueport-{number}{os.getpid()}" for number in numbers)
        staging = next(path for path in names if path not in _OWN and not os.path.lexists(path))
        _OWN.add(staging)
    return staging


def sweep(out: Path) -> None:
    """Remove staging folders beside ``out`` that nobody works in."""
    for path in out.parent.glob(f".{glob.escape(out.name)}.trueport-*"):
        pid = path.name.rsplit("-", 1)[-1]
        if pid.isdigit() and path not in _OWN and not _is_at_work(int(pid)) and not _is_locked(path):
            remove(path)


def _is_at_work(pid: int) -> bool:
    """Whether a process of this number runs, which is not this one: it knows its own folders."""
    return pid != os.getpid() and is_alive(pid)


def _is_locked(folder: Path) -> bool:
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno in (errno.EAGAIN, errno.EACCES)
    finally:
        os.close(descriptor)
    return False
