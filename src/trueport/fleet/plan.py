"""``fleet.toml``: which models, with which of ``trueport.export``'s keywords, within which limits.

out = "exports"              # a folder or any fsspec URL; --out says another

[defaults]                   # for every entry that says nothing else
to = "onnx"
time = "30m"
memory = "8GB"

[[model]]
model = "models/bert"        # as for `trueport export`: a folder, a hub id, FILE.py:NAME
name = "bert"                # its folder in OUT; the model's own name when left out

[storage]                    # what fsspec's file system is opened with
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from trueport.errors import TrueportError
from trueport.fleet import keywords, limits
from trueport.fleet.limits import Limits, read_limits
from trueport.fleet.lines import Lines
from trueport.recipe import place

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
ENTRY_KEYS = ("model", "name")
TABLES = ("out", "defaults", "model", "storage")
PATHS = ("calibration",)
"""Keywords whose text is a file's name."""


@dataclass(frozen=True)
class Entry:
    """One model of a plan.

    Attributes:
        name: its folder in OUT, and what messages call it.
        model: what ``trueport.export`` is given; folders and files are absolute.
        options: keywords of ``trueport.export``.
        limits: what it may cost.
        line: where it begins in the plan, from 1; None where that is not known.
    """

    name: str
    model: str
    options: Mapping[str, Any]
    limits: Limits = field(default_factory=Limits)
    line: int | None = None


@dataclass(frozen=True)
class Plan:
    """A fleet: the file it was read from, its entries, where they go, and what opens that place."""

    path: Path
    entries: tuple[Entry, ...]
    out: str | None = None
    storage: Mapping[str, Any] = field(default_factory=dict)


def read_plan(path: str | Path) -> Plan:
    """The plan in a file, every key and kind checked; the values are judged by the export.

    Raises:
        TrueportError: it is no plan; the message names file, line, entry and the keys that there are.
    """
    path = Path(path).absolute()
    try:
        text = path.read_text(encoding="utf-8-sig")  # some editors begin UTF-8 with a mark
        content = tomllib.loads(text)
    except OSError as error:
        raise TrueportError(f"{path} cannot be read: {error.strerror}", "Give the plan, a TOML file.") from error
    except UnicodeDecodeError as error:
        raise TrueportError(f"{path} is not UTF-8", "Save it as UTF-8.") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, or brackets in brackets, among them
        raise TrueportError(f"{path} is not TOML: {error}", "Correct it.") from error
    return _Reader(path, text, content).plan()


class _Reader:
    """Turns a file's content into a plan, or into one message."""

    def __init__(self, path: Path, text: str, content: dict[str, Any]) -> None:
        self.path, self.content = path, content
        tables = content.get("model")
        self.tables: list[Any] = tables if isinstance(tables, list) else []
        self.lines = Lines(text, len(self.tables))

    def plan(self) -> Plan:
        self._check_top()
        defaults = self.content.get("defaults", {})
        self._check_table(defaults, "[defaults]", lambda key: self.lines.of_table("defaults", key), own=())
        entries = [self._entry(index, table, defaults) for index, table in enumerate(self.tables)]
        self._check_names(entries)
        return Plan(self.path, tuple(entries), self._out(), self._storage())

    def _check_top(self) -> None:
        for key in self.content:
            if key not in TABLES:
                self._refuse(self.lines.of_table("", key), f"unknown key {key!r}", _known(key, TABLES))
        for key in ("defaults", "storage"):
            if not isinstance(self.content.get(key, {}), dict):
                self._refuse(self.lines.of_table("", key), f"{key} is not a table", f"Write it as [{key}].")
        if not self.tables or not all(isinstance(table, dict) for table in self.tables):
            self._refuse(None, "the plan has no [[model]]", 'Write one for each model, with model = "...".')

    def _storage(self) -> dict[str, Any]:
        storage = dict(self.content.get("storage", {}))
        for key, value in storage.items():
            try:
                json.dumps(value)
            except TypeError:  # dates and times, of which a worker's job can tell nothing
                problem = f"[storage]: {key} = {value} is of the wrong kind"
                self._refuse(self.lines.of_table("storage", key), problem, "It takes text, numbers, true or false.")
        return storage

    def _out(self) -> str | None:
        out = self.content.get("out")
        if out is None:
            return None
        if not isinstance(out, str) or not out:
            self._refuse(self.lines.of_table("", "out"), f"out = {out!r} is no place", "Give a folder or a URL.")
        if "\0" in out:
            self._refuse(self.lines.of_table("", "out"), "out holds a NUL", "No file's name does.")
        return out if "://" in out or "::" in out else str(self._beside(out))

    def _entry(self, index: int, own: dict[str, Any], defaults: dict[str, Any]) -> Entry:
        called = f"[[model]] {index + 1}" + (f" ({own['name']})" if isinstance(own.get("name"), str) else "")

        def line(key: str = "") -> int | None:
            return self.lines.of_entry(index, key)

        model = own.get("model")
        if model is None or not isinstance(model, str) or not model:
            guess = f" Its {_guess(own)!r} may be meant." if _guess(own) else ""
            self._refuse(line("model"), f"{called} names no model", f'Give model = "...".{guess}')
        self._check_table(own, called, line, own=ENTRY_KEYS)
        table = defaults | own
        given = {key: value for key, value in table.items() if key in keywords.known()}
        for key in PATHS:
            if isinstance(given.get(key), str):
                given[key] = str(self._beside(given[key]))
        name = own.get("name", _own_name(model))
        if not isinstance(name, str) or not NAME.fullmatch(name) or ".fleet." in name:
            remedy = "Give name = with letters, digits, dots, dashes and underscores, 100 of them at most."
            self._refuse(line("name"), f"{called}: {name!r} is no name for a folder", remedy)
        return Entry(name, self._source(model), given, read_limits(table), line())

    def _check_table(self, table: Mapping[str, Any], called: str, line: Any, own: tuple[str, ...]) -> None:
        """Refuse keys that nobody knows, and values of the wrong kind."""
        all_keys = (*own, *keywords.known(), *limits.KEYS)
        for key, value in table.items():
            if isinstance(value, str) and "\0" in value:
                self._refuse(line(key), f"{called}: {key} holds a NUL", "No file's name does.")
            if key in keywords.living():
                remedy = 'It takes an object: let model = "FILE.py:NAME" give it (docs/custom.md).'
                self._refuse(line(key), f"{called}: {key} cannot be written in a plan", remedy)
            if key not in all_keys:
                self._refuse(line(key), f"{called}: unknown key {key!r}", _known(key, all_keys))
            if key in keywords.known() and not keywords.fits(key, value):
                words = keywords.kind_words(key)
                self._refuse(line(key), f"{called}: {key} = {value!r} is of the wrong kind", f"It takes {words}.")
        try:
            read_limits(table)
        except ValueError as error:
            key, problem, remedy = error.args
            self._refuse(line(key), f"{called}: {problem}", remedy)

    def _check_names(self, entries: list[Entry]) -> None:
        seen: dict[str, int] = {}
        for index, entry in enumerate(entries):
            # Some file systems take names that differ in case for the same.
            first = seen.setdefault(entry.name.casefold(), index)
            if first != index:
                problem = f"[[model]] {first + 1} and [[model]] {index + 1} would both be written to {entry.name}"
                self._refuse(self.lines.of_entry(index, "name"), problem, "Give one of them another name =.")

    def _source(self, model: str) -> str:
        """Folders and files are looked for beside the plan; what is not there is a hub id, or the export's to refuse."""
        file, name = place(model)
        if file is not None:
            return f"{self._beside(str(file))}:{name}"
        beside = self._beside(model)
        written_as_path = model.startswith((".", "/", "~"))
        return str(beside) if beside.is_dir() or written_as_path else model

    def _beside(self, name: str) -> Path:
        import os

        # Unlike pathlib's, which raises where it does not know the user: then it is a name like any other.
        return Path(os.path.normpath(self.path.parent / os.path.expanduser(name)))

    def _refuse(self, line: int | None, problem: str, remedy: str) -> NoReturn:
        where = str(self.path) if line is None else f"{self.path}:{line}"
        raise TrueportError(f"{where}: {problem}", remedy)


def _own_name(model: str) -> str:
    file, name = place(model)
    if file is not None:
        return file.stem if name == "recipe" else name
    return re.split(r"[\\/]", model.rstrip("\\/"))[-1]


def _guess(table: Mapping[str, Any]) -> str:
    """The key under which somebody may have written the model."""
    return next((key for key in ("source", "path", "id", "checkpoint") if key in table), "")


def _known(key: str, names: tuple[str, ...]) -> str:
    close = difflib.get_close_matches(key, names, n=1)
    meant = f"Did you mean {close[0]}? " if close else ""
    return f"{meant}The keys are: {', '.join(names)}."
