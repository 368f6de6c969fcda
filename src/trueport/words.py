"""Numbers, names and interfaces in words, for the report and the model card."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def is_unicode(text: str) -> bool:
    """Whether it is text that every program can read: Python keeps bytes that are not UTF-8 as halves of characters."""
    return not any("\ud800" <= char <= "\udfff" for char in text)


def clean(value: Any) -> Any:
    """The same structure with every unprintable character of its strings replaced.

    ``verify`` judges strangers' folders: a name may hold terminal escapes or marks that reverse the text.
    """
    if isinstance(value, str):
        return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in value)
    if isinstance(value, Mapping):
        return {clean(key): clean(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [clean(entry) for entry in value]
    return value


def number(value: float, digits: int = 2) -> str:
    """A short form: ``0.21``, ``3.7``, ``120``, ``2.1e-5``."""
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    if float(value).is_integer() and abs(value) < 1e5:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1e5:
        places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
        return f"{value:,.{places}f}"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def size_words(size: int) -> str:
    """A file size in decimal units."""
    value, unit = float(size), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if value < 1000:
            break
        value, unit = value / 1000, larger
    return f"{size} B" if unit == "B" else f"{value:.1f} {unit}"


def range_words(bounds: Sequence[int | None]) -> str:
    """A dimension's range: ``1 to 512``, ``0 and up``."""
    low, high = bounds
    return f"{low} and up" if high is None else f"{low} to {high:,}"


def grouped(tensors: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Tensors whose names differ in their layer alone share one line: ``past_key_values.{0–11}.key``.

    Each line has ``name``, ``dtype``, ``shape`` and ``count``.
    """
    lines: dict[tuple[str, str, str], list[int | None]] = {}
    for tensor in tensors:
        name = tensor["name"]
        found = re.search(r"(?<=\.)\d{1,6}(?=\.|$)", name)
        template = name if found is None else f"{name[: found.start()]}\0{name[found.end() :]}"
        shape = ", ".join(str(axis) for axis in tensor["shape"])
        lines.setdefault((template, tensor["dtype"], shape), []).append(int(found.group()) if found else None)
    return [
        {"name": _fill(template, layers), "dtype": dtype, "shape": shape, "count": len(layers)}
        for (template, dtype, shape), layers in lines.items()
    ]


def _fill(template: str, layers: Sequence[int | None]) -> str:
    """The template with its layers in the hole, runs of them as ranges."""
    runs: list[list[int]] = []
    for layer in layers:
        if layer is None:
            return template
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    spans = ", ".join(str(low) if low == high else f"{low}–{high}" for low, high in runs)
    return template.replace("\0", f"{{{spans}}}" if len(layers) > 1 else spans)


def listed(names: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def count_words(count: int, noun: str) -> str:
    """``1 case``, ``2 cases``."""
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s"


def fusion_words(optimized: Mapping[str, Any]) -> list[str]:
    """One line for each fusion of a manifest's ``optimized``: what became of it."""
    kinds = {"undone": "undone", "absent": "not there"}
    lines = [f"fused {name}: {count_words(count, 'place')}" for name, count in optimized["fusions"].items()]
    return lines + [f"{word} {name}: {why}" for kind, word in kinds.items() for name, why in optimized[kind].items()]


def model_name(manifest: Mapping[str, Any]) -> str:
    """The model's name; of a path its last part alone, since the rest belongs to a machine."""
    source = manifest.get("source", {})
    name = str(source.get("name") or source.get("id") or source.get("class") or "model")
    return name if source.get("kind") == "hub" else re.split(r"[\\/]", name.rstrip("\\/"))[-1] or "model"


def component_view(name: str, entry: Mapping[str, Any]) -> dict[str, Any]:
    """A component of the manifest, ready for tables.

    ``saved`` is by dimension what half of its bound would save, in words; empty where no memory is planned.
    """
    tables = [(title, grouped(entry.get(key, []))) for title, key in TABLES]
    memory = entry.get("memory") or {}
    halves = memory.get("saved_by_half", {})
    return {
        "name": name,
        "target": entry.get("target", "onnx"),
        "file": entry.get("file", ""),
        "method": entry.get("method", ""),
        "backend": entry.get("backend", ""),
        "memory": _memory_words(memory) if memory else "",
        "tables": tables,
        "state": _state(entry.get("state", [])),
        "dimensions": [
            (axis, range_words(bounds), size_words(halves[axis]) if axis in halves else "–" if halves else "")
            for axis, bounds in entry.get("dimensions", {}).items()
        ],
    }


TABLES = (("Inputs", "inputs"), ("Outputs", "outputs"), ("Kept inside", "kept"))
"""What a component's tables are called, and where the manifest has their lines."""


def _memory_words(memory: Mapping[str, Any]) -> str:
    """A plan's size: ``2.2 MB, 262.1 kB of it for caches``."""
    kept = f", {size_words(memory['kept'])} of it for caches" if memory.get("kept") else ""
    return f"{size_words(memory['arena'])}{kept}"


def of_target(components: Mapping[str, Any], target: str) -> dict[str, Any]:
    """The components of one target by their bare names; with two targets the second one's carry its name in front."""
    return {
        name.removeprefix(f"{target}/"): entry
        for name, entry in components.items()
        if entry.get("target", "onnx") == target
    }


def weights_words(manifest: Mapping[str, Any], asked: str = "auto") -> list[str]:
    """What a user has to know of weights that are hard links, or were to be (``asked``: ``--weights``)."""
    weights = manifest.get("weights") or {}
    if not weights.get("linked") or not weights.get("files"):
        graphs = any(entry.get("target") == "onnx" for entry in manifest.get("components", {}).values())
        written = "No file of the checkpoint serves the graphs as it is: nothing is linked, the weights were written."
        return [written] if asked == "link" and graphs else []
    files = ", ".join(weights["files"])
    return [
        f"{files}: hard links to the checkpoint's files, which must not be changed. ONNX Runtime runs them; onnx and "
        "onnx-ir refuse files with several links (--weights copy makes none)."
    ]


def program_words(manifest: Mapping[str, Any]) -> list[str]:
    """For each file that plans its memory ahead a line of what it costs, and one of what smaller bounds would save."""
    files: dict[str, list[Mapping[str, Any]]] = {}
    for entry in manifest.get("components", {}).values():
        if entry.get("memory"):
            files.setdefault(entry["file"], []).append(entry)
    return [line for file, part in files.items() for line in _program_lines(file, part, manifest.get("files", {}))]


def _program_lines(file: str, entries: Sequence[Mapping[str, Any]], files: Mapping[str, Any]) -> list[str]:
    size = f"{size_words(files[file]['size'])}, " if file in files else ""
    plans = [f"{entry.get('method', 'forward')} {_memory_words(entry['memory'])}" for entry in entries]
    bounds: dict[str, int | None] = {}
    for entry in entries:
        bounds |= {axis: largest for axis, (_, largest) in entry["dimensions"].items()}
    saved: dict[str, int] = {}
    for entry in entries:
        for axis, count in entry["memory"].get("saved_by_half", {}).items():
            saved[axis] = saved.get(axis, 0) + count
    halves = [f"{axis} ({bounds[axis]}) {size_words(count)}" for axis, count in saved.items() if axis in bounds]
    costs = [f"Half of a bound saves: {', '.join(halves)}."] if halves else []
    return [f"{file}: {size}{entries[0].get('backend', '')}. Memory planned: {'; '.join(plans)}.", *costs]


def _state(pairs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(output, input) names, those that differ in their layer alone on one line."""
    outputs, inputs = (
        grouped({"name": pair[side], "dtype": "", "shape": ()} for pair in pairs) for side in ("output", "input")
    )
    if [line["count"] for line in outputs] != [line["count"] for line in inputs]:
        return [(pair["output"], pair["input"]) for pair in pairs]
    return [(output["name"], fed["name"]) for output, fed in zip(outputs, inputs, strict=True)]
