"""A safetensors file of our own, written tensor by tensor: it never lies in memory."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

from trueport.weights.files import Told, copy_range, write_all

if TYPE_CHECKING:
    from trueport.weights.lazy import Span

ALIGNMENT = 64
"""Offsets are multiples of this wherever sizes are, as BLAS kernels like them."""


@dataclass(frozen=True)
class Part:
    """One tensor to write: a span of another file, or pieces of bytes that are made when their turn comes.

    Attributes:
        dtype: by safetensors' name.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    content: Span | Callable[[], Iterator[memoryview | bytes]]


def write(path: Path, parts: list[Part], told: Told) -> dict[str, int]:
    """Write the tensors; returns the offset of each in the file, by name.

    safetensors allows no holes, so tensors whose size keeps the alignment come first.
    """
    ordered = sorted(parts, key=lambda part: part.nbytes % ALIGNMENT != 0)
    header, begins, place = {}, dict[str, int](), 0
    for part in ordered:
        header[part.name] = {
            "dtype": part.dtype, "shape": list(part.shape), "data_offsets": [place, place + part.nbytes]
        }  # fmt: skip
        begins[part.name] = place
        place += part.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    start = 8 + len(text)
    with path.open("xb", buffering=0) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for part in ordered:
            _write_part(file, start + begins[part.name], part, told)
    return {name: start + begin for name, begin in begins.items()}


def _write_part(file: IO[bytes], place: int, part: Part, told: Told) -> None:
    if callable(part.content):
        done = 0
        for piece in part.content():
            done += write_all(file.fileno(), piece, place + done)
            told(len(piece))
        if done != part.nbytes:
            raise AssertionError(f"{part.name} has {done} bytes where {part.nbytes} were announced")
    else:
        with part.content.path.open("rb", buffering=0) as reading:
            copy_range(reading, part.content.offset, file, place, part.nbytes, told)
