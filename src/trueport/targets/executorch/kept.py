"""A lowered method without the checkpoint's weights, as bytes that another process goes on from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program, _program_to_flatbuffer
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir._serialize.data_serializer import DataEntry
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import Program, SubsegmentOffsets
from executorch.exir.tensor_layout import TensorLayout
from executorch.exir.version import EXECUTORCH_SCHEMA_VERSION

from trueport.interface import Interface
from trueport.targets.executorch.methods import Emitted, Method
from trueport.weights.linked import origins_of

if TYPE_CHECKING:
    from executorch.exir.schema import ExecutionPlan

    from trueport.roles import Component
    from trueport.targets.executorch.blobs import Blob, Blobs

LARGEST_INLINE = 64 * 1024 * 1024
"""Bytes of a method that are no parameter of the checkpoint past which it is not kept."""
LISTS = ("constants", "mutable", "delegates", "external")
"""Where an Emitted has blobs, besides those that it names."""


def to_bytes(method: Method, names: Mapping[int, str]) -> bytes | None:
    """The method, in the place of each weight the parameter that it is; None where that is not all there is to it.

    Args:
        method: whose blobs are views of parameters, or bytes.
        names: of the parameters in the captured program, by the ids of their views.
    """
    found = method.emitted
    own = bytearray()
    places: dict[int, Any] = {}

    def place(blob: Blob) -> Any:
        if id(blob) not in places:
            name = names.get(id(blob))
            start = len(own) if name is None else name
            places[id(blob)] = [start, len(blob), hashlib.sha256(blob).hexdigest()]
            if name is None and len(own) <= LARGEST_INLINE:
                own.extend(blob)
        return places[id(blob)]

    facts = {
        "interface": method.interface.to_json(),
        "guards": list(method.guards),
        "depth": method.depth,
        "memory": method.memory,
        "kernels": list(method.kernels),
        **{name: [place(blob) for blob in getattr(found, name)] for name in LISTS},
        "names": found.names,
        "buffers": [place(blob) for blob in found.named.buffers],
        "inside": {key: _entry_json(entry) for key, entry in found.named.pte_data.items()},
        "beside": {
            file: {key: _entry_json(entry) for key, entry in entries.items()}
            for file, entries in found.named.external_data.items()
        },
    }
    plan = _plan_bytes(found.plan)
    # Whatever does not come back as it was would be other bytes in the artefact.
    if len(own) > LARGEST_INLINE or _plan_bytes(_plan(plan)) != plan:
        return None
    text = json.dumps({**facts, "plan": len(plan)})
    return text.encode() + b"\n" + plan + bytes(own)


def from_bytes(content: bytes, component: Component, blobs: Blobs) -> Method | None:
    """The method with the weights of a component; None where they are not those that it was made with."""
    text, _, rest = content.partition(b"\n")
    facts: Mapping[str, Any] = json.loads(text)
    interface = component.interface.with_outputs(Interface.from_json(facts["interface"]).outputs)
    if interface.to_json() != facts["interface"]:
        return None
    plan, own = rest[: facts["plan"]], rest[facts["plan"] :]
    parameters = {f"{INNER}{name}": p for name, p in component.module.named_parameters(remove_duplicate=False)}
    known = {f"{INNER}{name}" for name in origins_of(component.module)}
    made: dict[tuple[Any, int], Blob] = {}

    def blob(place: Sequence[Any]) -> Blob:
        start, size, digest = place
        if (start, size) not in made:
            inside = not isinstance(start, str)
            found = own[start : start + size] if inside else blobs.hold(parameters[start]) if start in known else None
            # A program names weights by what they were, which must not come to mean others.
            if found is None or len(found) != size or hashlib.sha256(found).hexdigest() != digest:
                raise KeyError(start)
            made[start, size] = found
        return made[start, size]

    try:
        lists = {name: tuple(blob(place) for place in facts[name]) for name in LISTS}
        buffers = [blob(place) for place in facts["buffers"]]
    except KeyError:  # a parameter that is not there, or is another one
        return None
    named = NamedDataStoreOutput(
        buffers,
        {key: _entry(entry) for key, entry in facts["inside"].items()},
        {file: {key: _entry(entry) for key, entry in entries.items()} for file, entries in facts["beside"].items()},
    )
    return Method(
        component.name,
        component.stem,
        Emitted(_plan(plan), **lists, names=facts["names"], named=named),
        interface,
        tuple(facts["guards"]),
        facts["depth"],
        facts["memory"],
        tuple(facts["kernels"]),
    )


INNER = "inner."
"""Where a captured program has a component's module."""


def _plan_bytes(plan: ExecutionPlan) -> bytes:
    program = Program(EXECUTORCH_SCHEMA_VERSION, [plan], [], [], [], SubsegmentOffsets(0, []))
    return bytes(_program_to_flatbuffer(program).data)


def _plan(content: bytes) -> ExecutionPlan:
    (plan,) = _flatbuffer_to_program(content).execution_plan
    return plan


def _entry_json(entry: DataEntry) -> list[Any]:
    layout = entry.tensor_layout
    shown = None if layout is None else [int(layout.scalar_type), list(layout.sizes), list(layout.dim_order)]
    return [entry.buffer_index, entry.alignment, shown]


def _entry(found: Sequence[Any]) -> DataEntry:
    index, alignment, layout = found
    return DataEntry(index, alignment, None if layout is None else TensorLayout(ScalarType(layout[0]), *layout[1:]))
