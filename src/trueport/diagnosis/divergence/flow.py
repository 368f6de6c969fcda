"""A program as a list of operations with named values, whatever runtime it is for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


@dataclass(frozen=True)
class Origin:
    """Where an operation comes from: the module's path in the model, and ``file:line (code)`` of its source."""

    module: str = ""
    line: str = ""

    def __bool__(self) -> bool:
        return bool(self.module or self.line)


@dataclass(frozen=True)
class Operation:
    """One operation.

    Attributes:
        name: its own, for the report.
        kind: the operator.
        inputs: names of values and constants; empty for an input left out.
        outputs: names of values.
        attributes: all else that decides what it computes, comparable by ``==``.
        origin: empty where the file does not tell.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    origin: Origin = Origin()


@dataclass(frozen=True)
class Flow:
    """Operations in the order of their running.

    Attributes:
        inputs: names of what is fed.
        outputs: names of what is given out.
        constants: by name a digest of dtype, shape and content.
        shown: by name a constant in words.
    """

    operations: tuple[Operation, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: Mapping[str, str]
    shown: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def producers(self) -> dict[str, Operation]:
        """The operation that gives each value."""
        return {name: operation for operation in self.operations for name in operation.outputs}

    @cached_property
    def readers(self) -> dict[str, list[Operation]]:
        """The operations that read each value."""
        found: dict[str, list[Operation]] = {}
        for operation in self.operations:
            for name in operation.inputs:
                found.setdefault(name, []).append(operation)
        return found


@dataclass(frozen=True)
class Alignment:
    """Which value of one program is which of another's.

    Attributes:
        equal: values computed by the same operations, with the same attributes, from the same constants and inputs.
        meant: values in the same place, whose computing may differ; ``equal`` among them.
    """

    equal: Mapping[str, str]
    meant: Mapping[str, str]


def align(suspect: Flow, fresh: Flow) -> Alignment:
    """Match two programs by what they compute and never by the names of their values.

    From the inputs on, operations that are equal and read equal values match. From the outputs back, operations of one
    kind in one place match, whatever their attributes and constants say: that is where a fault shows.
    """
    equal = _forward(suspect, fresh)
    return Alignment(equal, equal | _backward(suspect, fresh, equal))


def _forward(suspect: Flow, fresh: Flow) -> dict[str, str]:
    places: dict[Any, list[Operation]] = {}
    for operation in fresh.operations:
        places.setdefault(_key(operation, fresh, {name: name for name in _values(fresh)}), []).append(operation)
    matched = {name: name for name in suspect.inputs if name in set(fresh.inputs)}
    for operation in suspect.operations:
        if all(not name or name in suspect.constants or name in matched for name in operation.inputs):
            candidates = places.get(_key(operation, suspect, matched))
            if candidates:
                # Equal operations on equal values give equal results: any will do, the one of this name if there is one.
                chosen = next((each for each in candidates if each.outputs == operation.outputs), candidates[0])
                matched.update(zip(operation.outputs, chosen.outputs, strict=False))
    return matched


def _values(flow: Flow) -> Iterable[str]:
    return (*flow.inputs, *flow.producers)


def _key(operation: Operation, flow: Flow, names: Mapping[str, str]) -> Any:
    read = tuple(flow.constants[name] if name in flow.constants else names.get(name, name) for name in operation.inputs)
    attributes = tuple(sorted((name, repr(value)) for name, value in operation.attributes.items()))
    return operation.kind, read, len(operation.outputs), attributes


def _backward(suspect: Flow, fresh: Flow, equal: Mapping[str, str]) -> dict[str, str]:
    meant: dict[str, str] = {}
    waiting = [(name, name) for name in reversed(suspect.outputs) if name in set(fresh.outputs)]
    while waiting:
        mine, theirs = waiting.pop()
        if not mine or not theirs or mine in equal or mine in meant:
            continue
        meant[mine] = theirs
        one, other = suspect.producers.get(mine), fresh.producers.get(theirs)
        if one is None or other is None or one.kind != other.kind or len(one.inputs) != len(other.inputs):
            continue
        for left, right in (
            *zip(one.outputs, other.outputs, strict=False),
            *zip(one.inputs, other.inputs, strict=True),
        ):
            if (left in suspect.constants) == (right in fresh.constants):
                waiting.append((left, right))
    return meant
