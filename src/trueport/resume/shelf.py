"""Finished components on disk, outside every artefact: found by their key, whole or not at all, bounded in size and age."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.errors import ArtifactError, ProofError, TrueportError
from trueport.processes import is_alive
from trueport.resume.keys import component_key
from trueport.words import listed

if TYPE_CHECKING:
    from trueport.roles import Component
    from trueport.targets import Target

PLACE = "TRUEPORT_CACHE"
"""Environment variable that names the folder to keep them in."""
ENDING = ".component"
WRITING = re.compile(r"\.[0-9a-f]{64}-(\d+)")
"""A component that a process of this number is writing. The folder is the user's to name, and may hold files of theirs."""
DAYS = 7
"""How long a component is kept that no export came back for."""
LARGEST = 2**30
"""Bytes of all that is kept together; the oldest go first."""


def place_of() -> Path | None:
    """The folder for what is kept: ``$TRUEPORT_CACHE``, else ``trueport`` in the user's cache; None without a home."""
    named = os.environ.get(PLACE)
    if named:
        return Path(named)
    base = os.environ.get("XDG_CACHE_HOME")
    if base and os.path.isabs(base):
        return Path(base) / "trueport"
    with contextlib.suppress(RuntimeError):
        return Path.home() / ".cache" / "trueport"
    return None


@dataclass(frozen=True)
class Kept:
    """What an interrupted export left of a component.

    Attributes:
        content: what the target goes on from.
        patches: that were applied when it was captured.
        notes: that the user was told.
        since: when it was finished, in seconds as ``time.time`` has them.
    """

    content: bytes
    patches: tuple[str, ...]
    notes: tuple[str, ...]
    since: float

    @property
    def when(self) -> str:
        """Its time of day, with the date where that is not today's."""
        then, now = time.localtime(self.since), time.localtime()
        return time.strftime("%H:%M" if then[:3] == now[:3] else "%Y-%m-%d %H:%M", then)


class Shelf:
    """The components of one export.

    Nothing that happens here ends an export: what cannot be kept or read is not there.

    Args:
        key: what they depend on together (keys.key_of).
        folder: where they lie.
    """

    def __init__(self, key: str, folder: Path) -> None:
        self.key, self.folder = key, folder
        self._own: dict[Path, str] = {}
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _sweep(folder, time.time())

    @property
    def names(self) -> tuple[str, ...]:
        """The components that are kept for this export."""
        return tuple(dict.fromkeys(name for path, name in self._own.items() if path.is_file()))

    def find(self, target: str, component: Component) -> Kept | None:
        """The component as an earlier process finished it; None where there is none, or it is damaged."""
        path = self._path(target, component)
        try:
            if not _is_ours(self.folder):
                return None
            digest, _, rest = path.read_bytes().partition(b"\n")
            if digest.decode("ascii", "replace") != hashlib.sha256(rest).hexdigest():
                path.unlink()
                return None
            text, _, content = rest.partition(b"\n")
            facts = json.loads(text)
            self._own[path] = component.name
            return Kept(content, tuple(facts["patches"]), tuple(facts["notes"]), path.stat().st_mtime)
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def restored(self, target: Target, component: Component) -> tuple[Kept, Any] | None:
        """The same, with what the target makes of it; None where that is nothing."""
        kept = self.find(target.name, component)
        if kept is None:
            return None
        try:
            part = target.restored(kept.content, component)
        except Exception:  # whole, and still not what this version reads: as if it were not there
            part = None
        return None if part is None else (kept, part)

    def put(self, target: str, component: Component, facts: Mapping[str, Any], content: bytes) -> None:
        """Keep a finished component; ``facts``: ``patches`` and ``notes``."""
        path = self._path(target, component)
        rest = json.dumps(facts).encode() + b"\n" + content
        writing = path.with_name(f".{path.stem}-{os.getpid()}")
        try:
            if len(rest) > LARGEST // 2 or not _is_ours(self.folder):
                return
            writing.write_bytes(hashlib.sha256(rest).hexdigest().encode() + b"\n" + rest)
            os.replace(writing, path)
            self._own[path] = component.name
        except OSError:
            return
        finally:
            with contextlib.suppress(OSError):
                writing.unlink(missing_ok=True)

    def clear(self) -> None:
        """Remove what this export kept, or found."""
        for path in self._own:
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)

    def _path(self, target: str, component: Component) -> Path:
        return self.folder / f"{component_key(self.key, target, component)}{ENDING}"


@contextmanager
def left_for_another_time(shelf: Shelf | None) -> Iterator[None]:
    """Within, an export works: where it ends well nothing is kept, nor where its proof fails, which puts all in doubt.

    What else ends it is told what is kept: ``kept`` on the exception has the words.
    """
    try:
        yield
    except ProofError:
        if shelf is not None:
            shelf.clear()
        raise
    except BaseException as error:
        deterministic = isinstance(error, TrueportError) and not isinstance(error, ArtifactError)
        if shelf is not None and shelf.names and not deterministic:
            error.kept = f"Finished, and kept for the same command: {listed(shelf.names)}."  # type: ignore[attr-defined]
        raise
    if shelf is not None:
        shelf.clear()


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have put anything there."""
    stat = folder.stat()
    return stat.st_uid == os.getuid() and not stat.st_mode & 0o022


def _sweep(folder: Path, now: float) -> None:
    """Remove what is too old, what is too much, and what processes that are gone were writing."""
    for path in folder.glob(".*-*"):
        writing = WRITING.fullmatch(path.name)
        if writing and not is_alive(int(writing[1])):
            path.unlink(missing_ok=True)
    total = 0
    for when, size, path in sorted(_entries(folder), reverse=True):
        total += size
        if when < now - DAYS * 86400 or total > LARGEST:
            path.unlink(missing_ok=True)


def _entries(folder: Path) -> Iterator[tuple[float, int, Path]]:
    for path in folder.glob(f"{'[0-9a-f]' * 64}{ENDING}"):
        with contextlib.suppress(OSError):
            stat = path.stat()
            yield stat.st_mtime, stat.st_size, path
