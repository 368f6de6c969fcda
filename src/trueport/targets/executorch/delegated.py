"""Which layers of a ``.pte`` multiply in few bits, from its own bytes: the runtime does not tell, a manifest may lie."""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flatbuffers import number_types as numbers  # type: ignore[import-untyped]
from flatbuffers.table import Table  # type: ignore[import-untyped]

from trueport.errors import ArtifactError
from trueport.targets.executorch.header import LAYOUT, MAGIC

BACKEND = b"XnnpackBackend"
"""The delegate's name in a program."""
HEADER = struct.Struct("<4sHI")
"""Of what XNNPACK is given, from byte 4 on: magic, header length, where its graph begins (runtime/XNNHeader.h)."""
OFFSET = struct.Struct("<I")
"""Where a flatbuffer's root is, from its begin on."""
FULLY_CONNECTED = 2
"""Place of XNNFullyConnected in XNodeUnion (backends/xnnpack/serialization/runtime_schema.fbs)."""
QUANTISED_VALUE = 2
"""Place of XNNQuantizedTensorValue in XValueUnion."""
FORMS = {
    (9, 6): "8da8w",
    (9, 8): "8da4w",
    (9, 10): "8da4w",
    (3, 3): "int8",
    (3, 6): "int8",
    (4, 3): "int8",
    (4, 6): "int8",
}
"""The kind of a layer by XNNDatatype of its activations and of its weights: qdint8, qint8 and quint8 times qint8, qcint8,
qcint4 and qbint4."""


def quantised_layers(path: Path) -> Counter[str]:
    """Linear layers that XNNPACK runs in few bits, by kind, those of all methods.

    Raises:
        ArtifactError: the file is broken.
    """
    try:
        with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return Counter(form for start in _delegates(data) for form in _forms(data, start))
    except (struct.error, ValueError, IndexError, TypeError) as error:
        raise ArtifactError(f"{path.name} is cut short or broken", "Export again.") from error


def _delegates(data: mmap.mmap) -> Iterator[int]:
    """Where the graph of each of XNNPACK's parts begins; fields as program.fbs numbers them."""
    program = _root(data, 0)
    segments, within = _tables(program, 4), _tables(program, 3)
    base = LAYOUT.unpack_from(data, 8)[3] if data[8:12] == MAGIC else 0
    for delegate in (delegate for plan in _tables(program, 1) for delegate in _tables(plan, 7)):
        name = _place(delegate, 0)
        if not name or delegate.String(delegate.Pos + name) != BACKEND:
            continue
        reference = _table(delegate, 1)
        index = _number(reference, 1)
        if _number(reference, 0, numbers.Uint8Flags):
            start = base + _number(segments[index], 0, numbers.Uint64Flags)
        else:
            start = within[index].Vector(_place(within[index], 0))
        magic, _, offset = HEADER.unpack_from(data, start + 4)
        yield start + (offset if magic == b"XH00" else 0)


def _forms(data: mmap.mmap, start: int) -> Iterator[str]:
    """The kind of each linear layer in few bits of one graph; fields as runtime_schema.fbs numbers them."""
    graph = _root(data, start)
    kinds: dict[int, int] = {}
    for entry in _tables(graph, 2):
        value = _table(entry, 1)
        if _number(entry, 0, numbers.Uint8Flags) == QUANTISED_VALUE:
            value = _table(value, 0)
        kinds[_number(value, 6)] = _number(value, 0, numbers.Int16Flags)
    for node in _tables(graph, 1):
        if _number(node, 0, numbers.Uint8Flags) == FULLY_CONNECTED:
            layer = _table(node, 1)
            form = FORMS.get((kinds.get(_number(layer, 0), 0), kinds.get(_number(layer, 1), 0)))
            if form is not None:
                yield form


def _root(data: mmap.mmap, start: int) -> Table:
    return Table(data, start + OFFSET.unpack_from(data, start)[0])


def _place(table: Table, field: int) -> int:
    """Of a field in its table; 0 where it is absent."""
    return int(table.Offset(4 + 2 * field))


def _number(table: Table, field: int, kind: Any = numbers.Uint32Flags) -> int:
    place = _place(table, field)
    return int(table.Get(kind, table.Pos + place)) if place else 0


def _table(table: Table, field: int) -> Table:
    place = _place(table, field)
    if not place:
        raise ValueError("a part is missing")
    return Table(table.Bytes, table.Indirect(table.Pos + place))


def _tables(table: Table, field: int) -> list[Table]:
    place = _place(table, field)
    if not place:
        return []
    start = table.Vector(place)
    return [Table(table.Bytes, table.Indirect(start + 4 * index)) for index in range(table.VectorLen(place))]
