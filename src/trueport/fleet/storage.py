"""Where artefacts go: a folder, or any URL that fsspec knows.

An artefact is there when its ``trueport.json`` is, with the key of its entry, and every file that this names in its size.
In a file system the folder is moved into place whole; elsewhere it is exchanged (exchange.py).
"""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from trueport.artifact import MANIFEST, check_place, sha256, staged, write_json
from trueport.errors import StorageError
from trueport.fleet import exchange
from trueport.fleet.exchange import UNFINISHED, WORKSHOP
from trueport.fleet.files import Files

MARK = "mark"
BUCKETS = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "oss"}
"""Kinds of place that begin with a bucket, which fsspec makes where there is none: a slip of the pen would."""


class Store(Files):
    """One place for many artefacts, each under its name; it is opened as ``Files`` are."""

    def committed(self, name: str, key: str) -> dict[str, Any] | None:
        """The manifest of the artefact that was written for this key, if it is there whole."""
        with self.telling(name):
            self.system.invalidate_cache()
            manifest = self.json(name, MANIFEST)
            if manifest is None or _key(manifest) != key:
                return None
            sizes = self.sizes(name)
            files = manifest.get("files", {})
            whole = all(path in sizes and sizes[path] in (None, entry.get("size")) for path, entry in files.items())
            return manifest if whole else None

    def check(self, name: str, key: str, *, force: bool) -> None:
        """Refuse a place that holds something else.

        Raises:
            ArtifactError: it is not ours, or it is another export and ``force`` is off.
            StorageError: it cannot be read.
        """
        with self.telling(name):
            manifest = self.json(name, MANIFEST)
            mine = manifest is not None and _key(manifest) == key
            if self.renames:
                check_place(Path(self.root, name), force=force or mine)
                return
            present, unfinished = set(self.sizes(name)), self.json(name, UNFINISHED)
        known = {MANIFEST, UNFINISHED, *(manifest or {}).get("files", {}), *(unfinished or {}).get("files", [])}
        if present and (strangers := sorted(present - known if manifest or unfinished else present)):
            problem = f"{self.where(name)} holds files that Trueport did not write ({strangers[0]})"
            raise StorageError(problem, "Choose another place, or empty it yourself.")
        if manifest is not None and not (mine or force or unfinished):
            remedy = "Give --force (force = true) to replace it."
            raise StorageError(
                f"{self.where(name)} holds an earlier export, of another source or other options", remedy
            )

    def publish(
        self, folder: Path, name: str, key: str, *, force: bool = False, run: str = "alone", attempt: int = 1
    ) -> int:
        """Bring a finished folder to its place; it is there whole or not at all.

        Whatever happens, what was there stays whole until this one is.

        Args:
            folder: that ``trueport.export`` wrote; it is gone afterwards where it could be moved.
            name: of the artefact.
            key: of its entry, which its manifest will hold.
            force: replace another export.
            run: of the fleet, below whose mark it is made ready.
            attempt: from 1; one that was lost may still be at work.

        Returns:
            The bytes of its files.

        Raises:
            TrueportError: as ``check``; or it could not be written.
        """
        self.check(name, key, force=force)
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        manifest["fleet"] = {"name": name, "key": key}
        mine = (self._manifest_key(name)) == key
        with self.telling(name):
            if self.renames:
                write_json(folder / MANIFEST, manifest)
                with staged(Path(self.root, name), replace=force or mine) as staging:
                    folder.rename(staging)
            else:
                ready, manifest = f"{WORKSHOP}/{run}/{name}.{attempt}", _hashed(folder, manifest)
                exchange.bring(self, folder, name, ready, manifest)
        return sum(entry["size"] for entry in manifest["files"].values())

    def finish(self, name: str) -> None:
        """Bring to its end what was cut while an artefact came to its place (exchange.py).

        Raises:
            StorageError: it cannot be; what is whole stays so.
        """
        if not self.renames:
            with self.telling(name):
                exchange.finish(self, name)

    def read(self, name: str, path: str) -> Any:
        """A JSON file of an artefact; None where there is none."""
        with self.telling(name):
            return self.json(name, path)

    def write_text(self, name: str, text: str) -> None:
        """Put one file beside the artefacts."""
        with self.telling(name):
            self.write_bytes(name, text.encode("utf-8"))

    def begin(self, run: str) -> None:
        """Put up a run's mark: whoever sees it, sees this place.

        Raises:
            StorageError: it cannot be written, or there is no such bucket.
        """
        bucket = self.root.lstrip("/").partition("/")[0]
        if self.kinds & BUCKETS and not self.system.exists(bucket):
            raise StorageError(f"{self.told}: there is no bucket {bucket} to be reached", "Make it, or correct --out.")
        if self.renames and Path(self.root).exists() and not Path(self.root).is_dir():
            raise StorageError(f"{self.told} is not a folder", "Choose another place.")
        self.write_text(f"{WORKSHOP}/{run}/{MARK}", run)

    def sees(self, run: str) -> bool:
        """Whether a run's mark can be seen from here."""
        with self.telling(WORKSHOP):
            return bool(self.system.exists(self.at(f"{WORKSHOP}/{run}/{MARK}")))

    def end(self, run: str) -> bool:
        """Remove a run's mark and whatever its workers left beside it; whether all of it is gone."""
        gone = True
        try:
            if self.renames:
                self.remove(f"{WORKSHOP}/{run}")
            else:
                exchange.sweep(self, run)
        except Exception:  # what cannot be removed now, the next run of the plan removes
            gone = False
        with suppress(Exception):
            self.system.rmdir(self.at(WORKSHOP))
        return gone

    def workshop(self, run: str) -> Path | None:
        """The folder to export in, from which an artefact can be moved into place; None where nothing can."""
        return Path(self.root, WORKSHOP, run) if self.renames else None

    def _manifest_key(self, name: str) -> str | None:
        with self.telling(name):
            return _key(self.json(name, MANIFEST) or {})


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
