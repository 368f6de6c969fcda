"""The form of a manifest: what each part is that others rely on, whoever wrote or edited it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

ROLES = ("encoder", "decoder", "seq2seq", "custom")
"""What a model is to its runtime and its proof."""
WORDS: dict[type, str] = {str: "no text", int: "no whole number", list: "no list", dict: "not an object"}
"""What a part is not."""
TOP = {
    "source": dict, "components": dict, "files": dict, "proof": dict, "versions": dict, "patches": list,
    "quantize": dict, "optimized": dict, "weights": dict,
}  # fmt: skip
SOURCE = {
    "role": str, "task": str, "kind": str, "name": str, "class": str, "model_type": str, "dtype": str, "revision": str,
    "weights_sha256": str, "untrained": list, "reread_past": int, "time": str, "call": dict, "first_call": dict,
    "draws": dict, "sizes": dict,
}  # fmt: skip
COMPONENT = {
    "target": str, "file": str, "depth": int, "guards": list, "method": str, "data": str, "backend": str,
    "kernels": list, "memory": dict,
}  # fmt: skip
FILE = {"size": int, "sha256": str, "mtime_ns": int}
LISTED = {"untrained": str, "guards": int, "kernels": str}
"""What is in those lists."""
NAMES = {"seq2seq": ("encoder", "decoder")}
"""The components of each target, by the role; of all others it is the model."""
LONGEST = 255, 4095
"""Bytes of a file's name, and of its path in the folder."""


def check_form(manifest: Any) -> None:
    """Complete a manifest by what may be absent, and refuse one of another form.

    Raises:
        ValueError: its words name the part.
    """
    _check(manifest, TOP, "")
    for name in ("source", "components", "files", "proof"):
        manifest.setdefault(name, {})
    source = {key: value for key, value in manifest["source"].items() if value is not None}
    _check(source, SOURCE, "source.")
    role = source.get("role", ROLES[0])
    if role not in ROLES:
        raise ValueError(f"source.role is none of {', '.join(ROLES)}")
    for part, form in (("components", COMPONENT), ("files", FILE)):
        for name, entry in manifest[part].items():
            if not isinstance(entry, dict):
                raise ValueError(f"the entry of {name!r} in {part} is not an object")
            _check(entry, form, f"{part}: {name!r}: ")
    if "role" in source:
        _check_components(manifest["components"], NAMES.get(role, ("model",)), role)
    for name in (*manifest["files"], *(entry["file"] for entry in manifest["components"].values() if "file" in entry)):
        _check_name(name)


def _check(found: Any, form: Mapping[str, type], place: str) -> None:
    for key, kind in form.items():
        if key not in found:
            continue
        if not isinstance(found[key], kind) or (kind is int and isinstance(found[key], bool)):
            raise ValueError(f"{place}{key} is {WORDS[kind]}")
        if key in LISTED and not all(isinstance(entry, LISTED[key]) for entry in found[key]):
            raise ValueError(f"{place}{key} holds something that is {WORDS[LISTED[key]]}")


def _check_components(entries: Mapping[str, Any], names: tuple[str, ...], role: str) -> None:
    for target in {entry.get("target") for entry in entries.values()}:
        found = {name.rpartition("/")[2] for name, entry in entries.items() if entry.get("target") == target}
        for name in names:
            if name not in found:
                raise ValueError(f"source.role is {role}, and there is no component {name} for {target}")


def _check_name(name: str) -> None:
    """Refuse what is no place in a folder, or is one by another name than its own."""
    path = PurePosixPath(name)
    if "\0" in name:
        raise ValueError("a file's name holds a NUL")
    try:
        longest = max((len(part.encode()) for part in path.parts), default=0)
    except UnicodeEncodeError as error:
        raise ValueError("a file's name is no text") from error
    if longest > LONGEST[0] or len(name.encode()) > LONGEST[1]:
        raise ValueError(f"the file {name[:20]!r}... has a name that no file has")
    if path.is_absolute() or ".." in path.parts or str(path) != name:
        raise ValueError(f"the file {name!r} is no place in the folder")
