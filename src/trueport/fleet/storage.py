"""Where artefacts go: a folder, or any URL that fsspec knows.

An artefact is there when its ``trueport.json`` is, with the key of its entry, and every file that this names in its size.
In a file system the folder is moved into place whole. Elsewhere there is no such move: what is being written carries
``trueport.unfinished.json``, the files follow, and ``trueport.json`` comes last.
"""

from __future__ import annotations

import errno
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trueport.artifact import MANIFEST, check_place, sha256, staged, write_json
from trueport.errors import StorageError, TrueportError

UNFINISHED = "trueport.unfinished.json"
"""Names the files of an upload while it goes on, so that the next attempt knows them for ours."""
WORKSHOP = ".trueport-fleet"
"""Beside the artefacts: for each run a folder with its mark, and in a file system what its workers are writing."""
MARK = "mark"
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
PAUSE = 20.0
"""Seconds without a word after which a connection may be gone: FTP servers end them, and fsspec takes what they say then
for a file that is not there."""
BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"}
"""Kinds of place that begin with a bucket, which fsspec makes where there is none: a slip of the pen would."""
PASSWORD = re.compile(r"(?<=://)([^/:@]*):[^/]*@")


class Store:
    """One place for many artefacts, each under its name.

    Args:
        url: a folder, or what fsspec takes.
        options: what its file system is opened with.

    Attributes:
        told: the URL without the password that it may hold.
        kinds: fsspec's names of this kind of place.
        renames: whether a folder can be moved into place whole.

    Raises:
        StorageError: there is no such kind of place, or its package is not installed.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url = url.rstrip("/") if "://" in url else str(Path(url).absolute())
        if "://" in url and "://" not in self.url:  # s3://$BUCKET without a bucket: else a folder "s3:" here
            raise StorageError(f"{url} names no place behind its ://", "Give the whole URL of a folder.")
        self.told = PASSWORD.sub(r"\1@", self.url)
        self.options = dict(options or {})
        self._system, self.root = self._open()
        self._asked = time.monotonic()
        protocols = self._system.protocol
        self.kinds = {protocols} if isinstance(protocols, str) else set(protocols)
        self.renames = "file" in self.kinds

    @property
    def system(self) -> Any:
        """fsspec's file system, with a connection that is not older than ``PAUSE`` seconds without a word."""
        if time.monotonic() - self._asked > PAUSE:
            self._system, _ = self._open()
        self._asked = time.monotonic()
        return self._system

    def _open(self) -> tuple[Any, str]:
        from fsspec.core import url_to_fs

        try:
            system, root = url_to_fs(self.url, **self.options)
        except (ImportError, ValueError) as error:
            reason = " ".join(str(error).split())
            remedy = "Install what its kind of place needs."
            raise StorageError(f"{self.told} cannot be opened: {reason}", remedy) from error
        except Exception as error:
            raise _explained(error, self.told) from error
        return system, str(root).rstrip("/")

    def where(self, name: str) -> str:
        """An artefact's address, as it is told and written down: without a password."""
        return f"{self.told}/{name}"

    def committed(self, name: str, key: str) -> dict[str, Any] | None:
        """The manifest of the artefact that was written for this key, if it is there whole."""
        with self._told(name):
            self.system.invalidate_cache()
            manifest = self._json(name, MANIFEST)
            if manifest is None or _key(manifest) != key:
                return None
            sizes = self._sizes(name)
            files = manifest.get("files", {})
            whole = all(path in sizes and sizes[path] in (None, entry.get("size")) for path, entry in files.items())
            return manifest if whole else None

    def check(self, name: str, key: str, *, force: bool) -> None:
        """Refuse a place that holds something else.

        Raises:
            ArtifactError: it is not ours, or it is another export and ``force`` is off.
            StorageError: it cannot be read.
        """
        with self._told(name):
            manifest = self._json(name, MANIFEST)
            mine = manifest is not None and _key(manifest) == key
            if self.renames:
                check_place(Path(self.root, name), force=force or mine)
                return
            present, unfinished = set(self._sizes(name)), self._json(name, UNFINISHED)
        known = {MANIFEST, UNFINISHED, *(manifest or {}).get("files", {}), *(unfinished or {}).get("files", [])}
        if present and (strangers := sorted(present - known if manifest or unfinished else present)):
            problem = f"{self.where(name)} holds files that Trueport did not write ({strangers[0]})"
            raise StorageError(problem, "Choose another place, or empty it yourself.")
        if manifest is not None and not (mine or force or unfinished):
            remedy = "Give --force (force = true) to replace it."
            raise StorageError(
                f"{self.where(name)} holds an earlier export, of another source or other options", remedy
            )

    def publish(self, folder: Path, name: str, key: str, *, force: bool = False) -> int:
        """Bring a finished folder to its place; it is there whole or not at all.

        Args:
            folder: that ``trueport.export`` wrote; it is gone afterwards where it could be moved.
            name: of the artefact.
            key: of its entry, which its manifest will hold.
            force: replace another export.

        Returns:
            The bytes of its files.

        Raises:
            TrueportError: as ``check``; or it could not be written.
        """
        self.check(name, key, force=force)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest["fleet"] = {"name": name, "key": key}
        mine = (self._manifest_key(name)) == key
        with self._told(name):
            if self.renames:
                write_json(folder / MANIFEST, manifest)
                with staged(Path(self.root, name), replace=force or mine) as staging:
                    folder.rename(staging)
            else:
                self._upload(folder, name, _hashed(folder, manifest))
        return sum(entry["size"] for entry in manifest["files"].values())

    def _upload(self, folder: Path, name: str, manifest: dict[str, Any]) -> None:
        files = sorted(manifest["files"])
        self.system.invalidate_cache()
        present = set(self._sizes(name))
        earlier = sorted(present - {UNFINISHED, MANIFEST})
        self._write(f"{name}/{UNFINISHED}", {"key": _key(manifest), "files": sorted({*files, *earlier})})
        # From here until the end nothing vouches for what lies here.
        for path in [MANIFEST, *earlier]:
            if path in present:  # every kind of place has an error of its own for what is not there
                self.system.rm_file(self._at(name, path))
        try:
            for path in files:
                self._parent(f"{name}/{path}")
                self.system.put_file(str(folder / path), self._at(name, path))
            self.system.invalidate_cache()
            sizes = self._sizes(name)
            for path in files:
                if sizes.get(path, -1) not in (None, manifest["files"][path]["size"]):
                    raise OSError(errno.EIO, f"{path} arrived with {sizes.get(path, 0)} bytes")
            self._write(f"{name}/{MANIFEST}", manifest)
        except Exception:
            for path in [*files, MANIFEST, UNFINISHED]:  # a full place needs the room
                with suppress(Exception):
                    self.system.rm_file(self._at(name, path))
            raise
        self.tidy(name)

    def tidy(self, name: str) -> None:
        """Remove the mark of an upload that was interrupted between its last two steps."""
        if not self.renames:
            with suppress(Exception):
                self.system.rm_file(self._at(name, UNFINISHED))

    def read(self, name: str, path: str) -> Any:
        """A JSON file of an artefact; None where there is none."""
        with self._told(name):
            return self._json(name, path)

    def write_text(self, name: str, text: str) -> None:
        """Put one file beside the artefacts."""
        with self._told(name):
            self._parent(name)
            self.system.pipe_file(self._at(name), text.encode("utf-8"))

    def begin(self, run: str) -> None:
        """Put up a run's mark: whoever sees it, sees this place.

        Raises:
            StorageError: it cannot be written, or there is no such bucket.
        """
        bucket = self.root.lstrip("/").partition("/")[0]
        if self.kinds & BUCKETS and not self.system.exists(bucket):
            raise StorageError(f"{self.told}: there is no bucket {bucket} to be reached", "Make it, or correct --out.")
        self.write_text(f"{WORKSHOP}/{run}/{MARK}", run)

    def sees(self, run: str) -> bool:
        """Whether a run's mark can be seen from here."""
        with self._told(WORKSHOP):
            return bool(self.system.exists(self._at(f"{WORKSHOP}/{run}/{MARK}")))

    def end(self, run: str) -> bool:
        """Remove a run's mark and whatever its workers left beside it; whether all of it is gone."""
        gone = True
        try:
            self.system.rm(self._at(f"{WORKSHOP}/{run}"), recursive=True)
        except FileNotFoundError:
            pass
        except Exception:  # what cannot be removed now, the next run of the plan removes
            gone = False
        with suppress(Exception):
            self.system.rmdir(self._at(WORKSHOP))
        return gone

    def workshop(self, run: str) -> Path | None:
        """The folder to export in, from which an artefact can be moved into place; None where nothing can."""
        return Path(self.root, WORKSHOP, run) if self.renames else None

    def _manifest_key(self, name: str) -> str | None:
        with self._told(name):
            return _key(self._json(name, MANIFEST) or {})

    def _json(self, name: str, path: str) -> Any:
        try:
            return json.loads(self.system.cat_file(self._at(name, path)))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return None

    def _sizes(self, name: str) -> dict[str, int | None]:
        """Every file of an artefact with its size, by its relative path."""
        place = self._at(name)
        try:
            found = self.system.find(place, detail=True)
        except FileNotFoundError:
            return {}
        return {path[len(place) + 1 :]: entry.get("size") for path, entry in found.items() if path != place}

    def _write(self, path: str, content: Any) -> None:
        self._parent(path)
        self.system.pipe_file(self._at(path), json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n")

    def _parent(self, path: str) -> None:
        self.system.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)

    def _at(self, *parts: str) -> str:
        return "/".join((self.root, *parts))

    @contextmanager
    def _told(self, name: str) -> Iterator[None]:
        try:
            yield
        except StorageError:
            raise
        except TrueportError as error:
            if no_space(error):
                raise StorageError(error.problem, error.remedy) from error
            raise
        except Exception as error:  # every kind of place raises its own
            raise _explained(error, self.where(name)) from error


def no_space(error: BaseException | None) -> bool:
    """Whether a full disk is behind an error."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in NO_SPACE:
            return True
        error = error.__cause__ or error.__context__
    return False


def _explained(error: Exception, where: str) -> StorageError:
    if no_space(error):
        return StorageError(f"No space left for {where}", "Free space, or choose another place, and run again.")
    reason = " ".join(str(error).split())[:300].rstrip(".") or type(error).__name__
    if isinstance(error, TypeError):  # an option that is missing, or that nobody knows
        return StorageError(f"{where} cannot be opened: {reason}", "Correct [storage] in the plan.")
    return StorageError(f"{where} cannot be reached: {reason}", "See that it can be written, and run again.")


def _key(manifest: Any) -> str | None:
    fleet = manifest.get("fleet") if isinstance(manifest, dict) else None
    return fleet.get("key") if isinstance(fleet, dict) else None


def _hashed(folder: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest with every file's hash: a time of modification does not survive an upload."""
    files = {
        path: entry if "sha256" in entry else {"sha256": sha256(folder / path), "size": entry["size"]}
        for path, entry in manifest["files"].items()
    }
    return manifest | {"files": files}
