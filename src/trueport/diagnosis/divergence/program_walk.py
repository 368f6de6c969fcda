"""ExecuTorch programs walked beside a fresh export of the original.

The runtime shows the results of a whole method only. So both are run on the proof's inputs; where they differ, the
operations of both are compared one by one, XNNPACK's included, from the inputs on: equal operations on equal values
give equal values, and the first that is not equal is the first that diverges.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from trueport.diagnosis.divergence.against import RUNTIME, Divergence
from trueport.diagnosis.divergence.blame import blamed
from trueport.diagnosis.divergence.flow import Flow, Origin, align
from trueport.diagnosis.divergence.program_flow import flow_of, origins_of
from trueport.diagnosis.divergence.questions import questions
from trueport.diagnosis.divergence.walk import Difference, difference
from trueport.interface import Interface
from trueport.proof.tolerance import random_walk
from trueport.targets import find_target


def compare_programs(folder: Path, manifest: Mapping[str, Any], original: Any) -> list[Divergence]:
    """The first divergence of each method."""
    from trueport.capture import capture
    from trueport.targets.executorch.external import STEM
    from trueport.targets.executorch.flat import stored
    from trueport.targets.executorch.lower import partitioner_of, to_program

    entries = manifest["components"]
    parts = {part.name: part for part in _components(original, manifest)}
    captured = {name: capture(part) for name, part in parts.items()}
    backend = str(next(iter(entries.values())).get("backend", "xnnpack"))
    beside = any("data" in entry for entry in entries.values())
    programs = {each.stem: each.program for each in captured.values()}
    program = to_program(programs, partitioner_of(backend), beside=beside)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "fresh.pte"
        with path.open("wb") as stream:
            program.write_to_file(stream)
        if beside:
            program.write_tensor_data_to_file(temporary)
            (path.parent / f"{STEM}.ptd").rename(_beside(path, next(iter(entries.values()))))
        fresh = dict.fromkeys(entries, path)
        right = _answers(fresh, entries, manifest, original)
        files = {label: folder / entry["file"] for label, entry in entries.items()}
        given = _answers(files, entries, manifest, original)
        found = []
        for label, entry in entries.items():
            gap, output, shapes = _worst(given[label], right[label], int(entry.get("depth", 1)))
            if not gap.beyond:
                continue
            interface, method = Interface.from_json(entry), str(entry.get("method", "forward"))
            names = tuple(t.name for t in interface.inputs), tuple(t.name for t in interface.outputs)
            stores = [stored(_beside(file, entry)) if beside else {} for file in (files[label], path)]
            suspect = flow_of(files[label].read_bytes(), method, *names, {}, stores[0])
            true = flow_of(path.read_bytes(), method, *names, origins_of(program, method), stores[1])
            found.append(_blamed(label, suspect, true, output, gap, shapes))
        return found


def _beside(path: Path, entry: Mapping[str, Any]) -> Path:
    """Where the weights of a program lie that are not in it."""
    return path.with_name(Path(str(entry.get("data", path.name))).name)


def _blamed(label: str, suspect: Flow, fresh: Flow, output: str, gap: Difference, shapes: str) -> Divergence:
    alignment = align(suspect, fresh)
    if all(name in alignment.equal for name in suspect.outputs):
        words = f"the output {output} differs and every operation is the original's"
        return Divergence(label, RUNTIME, words, "", Origin(), gap.error, gap.budget, (), shapes)
    found = blamed(label, suspect, fresh, alignment, {}, shapes)
    seen = f"the output {output} is off by {gap.error:.3g}, where {gap.budget:.3g} is noise"
    return replace(found, reasons=(*found.reasons, seen))


def _components(original: Any, manifest: Mapping[str, Any]) -> list[Any]:
    """What the export captured, within the bounds that the manifest tells."""
    if manifest["source"].get("role") == "custom":
        from trueport.diagnosis.divergence.fresh import components_of

        return [replace(part, bounded=True, stem="forward") for part in components_of(original, manifest)]
    from trueport.roles.bounded import Bounds, components

    interfaces = [Interface.from_json(entry) for entry in manifest["components"].values()]
    dimensions = [dimension for interface in interfaces for dimension in interface.dimensions]
    rows = [d.maximum for d in dimensions if d.name == "batch_size" and d.maximum is not None]
    lengths = [(d.maximum or 1) + d.name.startswith("past") for d in dimensions if d.name != "batch_size" and d.maximum]
    bounds = Bounds(batch=max(rows, default=1), length=max(lengths, default=2))
    return components(original, bounds, untrained=tuple(manifest["source"].get("untrained") or ()))


def _answers(
    paths: Mapping[str, Path], entries: Mapping[str, Any], manifest: Mapping[str, Any], original: Any
) -> dict[str, list[tuple[dict[str, np.ndarray], dict[str, np.ndarray]]]]:
    """What each method is asked and answers, by component."""
    target = find_target("executorch")
    sessions = {
        label.rpartition("/")[2]: target.open(paths[label], Interface.from_json(entry), entry=entry)
        for label, entry in entries.items()
    }
    asked = questions(sessions, manifest, getattr(original, "config", None))
    return {label: asked[label.rpartition("/")[2]] for label in entries}


def _worst(given: Any, right: Any, depth: int) -> tuple[Difference, str, str]:
    """The output that is furthest off, on the inputs that show it."""
    worst, name, shapes = Difference(0.0, 0.0), "", ""
    for (feeds, answers), (_, truths) in zip(given, right, strict=True):
        for output, truth in truths.items():
            gap = difference(answers[output], truth, random_walk("float32", depth))
            if gap.beyond and gap.ratio > worst.ratio:
                told = ", ".join(f"{each} {tuple(array.shape)}" for each, array in feeds.items() if array.size)
                worst, name, shapes = gap, output, told
    return worst, name, shapes
