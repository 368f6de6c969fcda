"""When two exports are the same: the key of an entry, from its options, its source and the versions."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trueport.fleet import keywords
from trueport.fleet.plan import PATHS, Entry
from trueport.recipe import place

KEYLESS = ("force", "resume")
"""Keywords that do not change what is written."""


def key_of(entry: Entry, source: Any, versions: Mapping[str, str]) -> str:
    """sha256 of all that decides what is written for an entry, as hex."""
    options = {
        name: value for name, value in (keywords.defaults() | dict(entry.options)).items() if name not in KEYLESS
    }
    files = {name: _file(Path(options[name])) for name in PATHS if isinstance(options.get(name), str)}
    content = {"source": source, "options": options | files, "versions": dict(versions)}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def source_of(model: str) -> Any:
    """What a model's source is known by, as JSON.

    A folder by its name and its files' names, sizes and times of modification; a Python file by its content; a hub id by
    itself (its revision is an option).
    """
    file, name = place(model)
    if file is not None:
        return {"recipe": name, **_file(file)}
    if not os.path.isdir(model):
        return {"hub": model}
    return {"folder": os.path.basename(model), "files": sorted(_files(model))}


def _files(folder: str) -> list[list[Any]]:
    found = []
    for where, folders, names in os.walk(folder, followlinks=False):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = os.path.join(where, name)
            try:
                stat = os.stat(path)
            except OSError:  # a link that leads nowhere: the export says what it needs of it
                continue
            found.append([os.path.relpath(path, folder), stat.st_size, stat.st_mtime_ns])
    return found


def _file(path: Path) -> dict[str, str]:
    try:
        return {"file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    except OSError:
        return {"file": path.name, "sha256": ""}


def versions_for(to: str) -> dict[str, str]:
    """The versions of the packages that an export to these targets uses; of unknown targets, of those that all use."""
    from trueport import __version__
    from trueport.errors import TrueportError
    from trueport.lowering import VERSIONED
    from trueport.targets import find_targets

    try:
        packages = [*VERSIONED, *(name for target in find_targets(to) for name in target.packages)]
    except TrueportError:  # the export itself says so
        packages = list(VERSIONED)
    found = {"trueport": __version__}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found
