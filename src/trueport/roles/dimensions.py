"""Which dimensions of a module stay dynamic, and what they are called: those that were found, or what ``dynamic=`` says."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch

from trueport.errors import SourceError
from trueport.roles.probing import Found, Probe, resized
from trueport.roles.states import Stateful

BATCH, LENGTH = "batch_size", "sequence_length"
Dynamic = Mapping[str, Any]
"""Input name to the axes that are to be dynamic: numbers, or a dict from number to a name or a ``torch.export.Dim``."""


def own_dimensions(axes: Found, found: Stateful) -> set[int]:
    """Dimensions that only the state has."""
    of_state = {number for (name, _), numbers in axes.axes.items() if name in found.pairs for number in numbers}
    return of_state - {
        number for (name, _), numbers in axes.axes.items() if name not in found.pairs for number in numbers
    }


def chosen(
    dynamic: Dynamic | None, axes: Found, found: Stateful, probe: Probe
) -> tuple[dict[int, str], dict[str, tuple[int | None, int | None]]]:
    """Names of the dimensions that stay, by number, and the ranges that the user gave, by name."""
    names = _names(axes, found)
    if dynamic is None:
        return names, {}
    wanted: dict[int, str] = {}
    ranges: dict[str, tuple[int | None, int | None]] = {}
    for name, given in dynamic.items():
        if name not in axes.feeds:
            raise SourceError(f"dynamic= names {name}, which is no input", f"The inputs are {', '.join(axes.feeds)}.")
        for axis, label in (given if isinstance(given, Mapping) else dict.fromkeys(_listed(given))).items():
            numbers = axes.axes.get((name, axis))
            if numbers is None:
                length = axes.feeds[name].shape[axis] if axis < axes.feeds[name].ndim else 0
                longer = resized(axes.feeds[name], _longer(axes.feeds[name].shape, axis)) if length else None
                probe.refusal = "" if longer is not None else "there is no such axis"
                if longer is not None:
                    probe.runs({**axes.feeds, name: longer})
                reason = probe.refusal or "it is bound to another axis"
                raise SourceError(
                    f"Axis {axis} of {name} cannot be dynamic: {reason}", "Take it out of dynamic=, or mend the module."
                )
            for number in numbers:
                wanted[number] = names[number]
            if label is not None and len(numbers) == 1:
                wanted[numbers[0]] = _label(label if isinstance(label, str) else str(label.__name__), name, axis)
                if not isinstance(label, str):
                    ranges[wanted[numbers[0]]] = (getattr(label, "min", None), getattr(label, "max", None))
    twice = [label for number, label in wanted.items() if list(wanted.values()).count(label) > 1]
    if twice:
        raise SourceError(
            f"dynamic= gives the name {twice[0]} to two dimensions, which can have different lengths",
            "Give each a name of its own.",
        )
    own = own_dimensions(axes, found)
    # A state's own axes stay dynamic, unless dynamic= names the state too.
    own -= {number for (name, _), numbers in axes.axes.items() if name in dynamic for number in numbers}
    wanted |= {number: names[number] for number in own if number not in wanted}
    return wanted, ranges


def _label(label: str, name: str, axis: int) -> str:
    if not label.isidentifier():
        raise SourceError(f"dynamic= calls axis {axis} of {name} {label!r}", "Give a name of letters, digits and _.")
    return label


def restored(axes: Found, names: Mapping[int, str], given: Mapping[str, torch.Tensor], probe: Probe) -> Found:
    """Axes that stay constant at the sample's own length, where looking for dynamic ones made them longer."""
    feeds = {}
    for name, tensor in axes.feeds.items():
        shape = list(given[name].shape)
        for axis in range(tensor.ndim):
            numbers = axes.axes.get((name, axis), ())
            moving = [names[number] for number in numbers if number in names]
            if moving and len(moving) < len(numbers):
                raise SourceError(
                    f"Axis {axis} of {name} is a sum of dimensions, of which dynamic= names {', '.join(moving)} alone",
                    "Name the others too, or none of them.",
                )
            shape[axis] = tensor.shape[axis] if moving else shape[axis]
        feeds[name] = resized(tensor, shape)
    if not probe.runs(feeds):
        raise SourceError(f"The module refuses the sample at lengths that dynamic= allows: {probe.refusal}")
    return replace(axes, feeds=feeds)


def _longer(shape: Iterable[int], axis: int) -> list[int]:
    return [size + (index == axis) for index, size in enumerate(shape)]


def _listed(axes: Any) -> Collection[int]:
    return [axes] if isinstance(axes, int) else list(axes)


def _names(axes: Found, found: Stateful) -> dict[int, str]:
    """A name for each dimension: the batch is what plain inputs and state share, or what comes first."""
    plain = [name for name in axes.feeds if name not in found.pairs]
    first: dict[int, tuple[str, int]] = {}
    for name in (*plain, *found.pairs):
        for axis in range(axes.feeds[name].ndim):
            for number in axes.axes.get((name, axis), ()):
                if len(axes.axes[name, axis]) == 1:
                    first.setdefault(number, (name, axis))
    of_state = {n for (name, _), numbers in axes.axes.items() if name in found.pairs for n in numbers}
    ours = [number for number in first if first[number][0] in plain]
    batch = next((n for n in ours if n in of_state), None) if found.pairs else None
    if batch is None and not of_state:
        batch = next((number for number in ours if first[number][1] == 0), None)
    names: dict[int, str] = {}
    for number, (name, axis) in first.items():
        if number == batch:
            label = BATCH
        elif number in ours:
            label = LENGTH if LENGTH not in names.values() else f"{name.replace('.', '_')}_size_{axis}"
        else:
            label = f"{name.partition('.')[0]}_length"
            label = label if label not in names.values() else f"{name.replace('.', '_')}_size_{axis}"
        names[number] = label
    return names
