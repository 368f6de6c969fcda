"""How an artefact comes to its place where no folder can be renamed.

Where nothing is, it is written there, last its manifest. Where something is, it is written to the workshop first. From its
manifest on it is whole there, and what lies in its place may go: a mark, ``trueport.unfinished.json``, says where the new
one is until all of it has been brought over within the store. An exchange that is cut is finished from this mark, by
whoever comes next; before the mark, the old one is as it was.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from trueport.artifact import MANIFEST
from trueport.fleet.files import Files

UNFINISHED = "trueport.unfinished.json"
"""In a place where something goes on: ``files``, which are ours, old and new; ``staged``, where the new one lies whole."""
WORKSHOP = ".trueport-fleet"
"""Beside the artefacts: for each run a folder with its mark, and what its workers are writing."""
STAGED = re.compile(re.escape(WORKSHOP) + r"/[A-Za-z0-9]+/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)\.\d+")
"""A folder of the workshop: of a run, a name and an attempt."""


def bring(files: Files, folder: Path, name: str, staged: str, manifest: dict[str, Any]) -> None:
    """Bring a finished folder to its place.

    Args:
        files: of the store.
        folder: that was exported.
        name: of the place.
        staged: the place in the workshop; it matches ``STAGED``.
        manifest: of what is in the folder.

    Raises:
        Exception: whatever the store raises; OSError where a file arrived short. What was written is removed, or, when the
            exchange had begun, left for ``finish``.
    """
    files.system.invalidate_cache()
    present = files.sizes(name)
    ours = {*manifest["files"], *present} - {MANIFEST, UNFINISHED}
    mark = {"files": sorted(ours)}
    if not present:
        files.write(f"{name}/{UNFINISHED}", mark)
        _upload(files, folder, name, manifest)
        files.system.rm_file(files.at(name, UNFINISHED))
        return
    _upload(files, folder, staged, manifest)
    files.write(f"{name}/{UNFINISHED}", mark | {"staged": staged})
    _exchange(files, name, staged, manifest)


def finish(files: Files, name: str) -> None:
    """Bring what was cut to an end: what is whole to its place, and of what is not, nothing stays."""
    mark = files.json(name, UNFINISHED)
    if not isinstance(mark, dict):
        return
    staged = str(mark.get("staged"))
    found = STAGED.fullmatch(staged)
    manifest = files.json(staged, MANIFEST) if found and found["name"] == name else None
    if manifest is not None:
        _exchange(files, name, staged, manifest)
    elif files.json(name, MANIFEST) is not None:  # cut between the last two steps
        files.system.rm_file(files.at(name, UNFINISHED))
    else:
        _clear(files, name, mark.get("files") or [])


def sweep(files: Files, run: str) -> None:
    """Remove a run's workshop, when the exchanges that still need it are finished."""
    files.system.invalidate_cache()
    tops = {path.partition("/")[0] for path in files.sizes(f"{WORKSHOP}/{run}")}
    for top in sorted(tops):
        found = STAGED.fullmatch(f"{WORKSHOP}/{run}/{top}")
        if found and (files.json(found["name"], UNFINISHED) or {}).get("staged") == found[0]:
            finish(files, found["name"])
    files.remove(f"{WORKSHOP}/{run}")


def _upload(files: Files, folder: Path, place: str, manifest: dict[str, Any]) -> None:
    """Whole when this returns, gone when it raises."""
    try:
        for path in sorted(manifest["files"]):
            files.parent(f"{place}/{path}")
            files.system.put_file(str(folder / path), files.at(place, path))
        _check_sizes(files, place, manifest)
        files.write(f"{place}/{MANIFEST}", manifest)
    except Exception:
        with suppress(Exception):  # a full place needs the room; what cannot be removed now, the next run removes
            _clear(files, place, manifest["files"])
        raise


def _exchange(files: Files, name: str, staged: str, manifest: dict[str, Any]) -> None:
    """From the mark to the end; every step may have been done before."""
    files.system.invalidate_cache()
    here, there = files.sizes(name), files.sizes(staged)
    stays = {UNFINISHED, *(set(manifest["files"]) - set(there))}
    for path in sorted(
        set(here) - stays, key=lambda path: path != MANIFEST
    ):  # without it, nothing vouches for the rest
        files.system.rm_file(files.at(name, path))
    for path in sorted(manifest["files"]):
        if path in there:
            files.move(f"{staged}/{path}", f"{name}/{path}")
    _check_sizes(files, name, manifest)
    files.write(f"{name}/{MANIFEST}", manifest)
    files.system.rm_file(files.at(name, UNFINISHED))
    with suppress(Exception):  # the sweep removes it
        _clear(files, staged, manifest["files"])


def _clear(files: Files, place: str, paths: Iterable[str]) -> None:
    """Remove these files of a place, its manifest and its mark, and the folders that they leave empty."""
    files.system.invalidate_cache()
    present = files.sizes(place)
    for path in [MANIFEST, *paths, UNFINISHED]:
        if path in present:  # every kind of place has an error of its own for what is not there
            files.system.rm_file(files.at(place, path))
    folders = {str(folder) for path in present for folder in PurePosixPath(path).parents} - {"."}
    for folder in [*sorted(folders, key=len, reverse=True), ""]:
        with suppress(Exception):  # where folders are but a part of a name, or one holds something else
            files.system.rmdir(files.at(place, folder).rstrip("/"))


def _check_sizes(files: Files, name: str, manifest: dict[str, Any]) -> None:
    files.system.invalidate_cache()
    sizes = files.sizes(name)
    for path, entry in manifest["files"].items():
        if sizes.get(path, -1) not in (None, entry["size"]):
            raise OSError(errno.EIO, f"{path} arrived with {sizes.get(path, 0)} bytes")
