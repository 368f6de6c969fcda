"""Every component of a source, captured and lowered into the artefact's folder."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import SCHEMA_VERSION
from trueport.progress import Progress
from trueport.quiet import quiet

if TYPE_CHECKING:
    from trueport.capture import Captured
    from trueport.resume.shelf import Shelf
    from trueport.source import Source
    from trueport.targets import Lowered, Target

VERSIONED = ("torch", "transformers", "safetensors")
"""Packages whose versions every manifest names, besides those of its targets."""
SHARED = ("quantize", "weights")
"""What a target says of all its components at once; the manifest has it beside them."""


def write_graphs(
    source: Source, staging: Path, targets: Sequence[Target], options: dict[str, Any], tell: Progress
) -> dict[str, Any]:
    """Capture and lower every component for every target into ``staging``; the manifest so far."""
    patches: list[str] = []
    components: dict[str, Any] = {}
    shared: dict[str, Any] = {}
    for target in targets:
        prefix = f"{target.name}/" if components else ""
        with quiet():
            lowered = _lowered(source, target, staging, options, patches, tell)
        for name, part in lowered.items():
            shared |= {key: part.extra[key] for key in SHARED if key in part.extra}
            entry = {"target": target.name, "file": part.file, "depth": part.depth, "guards": list(part.guards)}
            extra = {key: value for key, value in part.extra.items() if key not in SHARED}
            components[prefix + name] = entry | extra | part.interface.to_json()
    return {
        "schema_version": SCHEMA_VERSION,
        "source": source.describe(whole=not all(target.links for target in targets)),
        "versions": _versions(targets),
        "components": components,
        "patches": list(dict.fromkeys(patches)),
        **shared,
        **({"weights": {"loaded": source.because}} if getattr(source, "because", "") else {}),
        "files": {},
        "proof": {"verdict": "unproven"},
    }


def _lowered(
    source: Source, target: Target, staging: Path, options: dict[str, Any], patches: list[str], tell: Progress
) -> Mapping[str, Lowered]:
    """Every component as ``target`` writes it, traced without the weights where that can be."""
    from trueport.weights.linked import is_fake
    from trueport.weights.mapped import Maps

    if target.links and is_fake(source.model):
        before, known = set(staging.iterdir()), len(patches)
        try:
            return _lower(source, source.model, target, staging, options, patches, tell)
        except Exception:  # a model that asks its weights for values; with them it may trace, or its own error is told
            if set(staging.iterdir()) != before:  # it was traced, and could not be written
                raise
            del patches[known:]
            tell("load: the model asks its weights for values")
    # What lies in no file as it is goes beside the staging folder, whose files are the artefact's.
    maps = Maps(staging.parent, private=True)
    mapped = not target.links and is_fake(source.model)
    with maps.given_back() if mapped else nullcontext():  # nobody looks at weights that are in memory
        model = source.original if target.links else source.attached(maps)
        lowered = _lower(source, model, target, staging, {**options, "maps": maps}, patches, tell)
        del model
    return source.settled(lowered, target, staging) if source.role == "custom" else lowered  # type: ignore[attr-defined]


def _lower(
    source: Source,
    model: Any,
    target: Target,
    staging: Path,
    options: dict[str, Any],
    patches: list[str],
    tell: Progress,
) -> Mapping[str, Lowered]:
    from trueport.weights.linked import fake_mode_of

    if source.role == "custom":
        found = source.components(target, options)  # type: ignore[attr-defined]
    else:
        with fake_mode_of(model):
            found = target.components(model, untrained=source.untrained, options=options)
    options = {**options, "components": {component.name: component for component in found}}
    config = getattr(model, "config", None)
    return target.lower(_captured(source, config, target, options, patches, tell), staging, options)


def _captured(
    source: Source, config: Any, target: Target, options: dict[str, Any], patches: list[str], tell: Progress
) -> Iterator[Captured | Any]:
    """Every component's program, or what the target goes on from where an interrupted export had finished it."""
    from trueport.graphs.stamping.shorten import captured

    stamp = target.stamps and source.role != "custom" and options.get("stamp", True)
    shelf: Shelf | None = options.get("shelf")
    for component in options["components"].values():
        facts: dict[str, list[str]] = {"patches": [], "notes": []}

        def note(line: str, notes: list[str] = facts["notes"]) -> None:
            tell(line)
            notes.append(line)

        if shelf is not None and (found := shelf.restored(target, component)) is not None:
            kept, part = found
            facts = {"patches": list(kept.patches), "notes": list(kept.notes)}
            note(f"capture {component.name}: taken from the interrupted export of {kept.when}", facts["notes"])
        else:
            tell(f"capture {component.name}")
            part = captured(component, config, note, stamp=stamp)
            facts["patches"] += part.patches
            if shelf is not None:
                part = replace(part, keep=partial(shelf.put, target.name, component, facts))
            tell(f"lower {component.name}")
        patches.extend(facts["patches"])
        yield part
        options.get("notes", []).extend(facts["notes"])  # the target may have had something to say too


def _versions(targets: Sequence[Target]) -> dict[str, str]:
    from trueport import __version__

    packages = [*VERSIONED, *(name for target in targets for name in target.packages)]
    return {"trueport": __version__} | {name: importlib.metadata.version(name) for name in packages}
