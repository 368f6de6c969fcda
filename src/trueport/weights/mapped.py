"""A checkpoint's model whose parameters are pages of its files: the system reads them when they are used, and may drop
them at any time."""

from __future__ import annotations

import copy
import mmap
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn

from trueport.resident import mapped_as, release, resident, watched
from trueport.weights.files import write_all
from trueport.weights.lazy import LazyTensor, Span
from trueport.weights.linked import ORIGIN, origin_of
from trueport.weights.streamed import StreamedTensor, one_by_one

SCRATCH = 4 * 2**30
"""Bytes of a scratch file, which takes no more room than what is written to it; a larger tensor has a larger one."""
RESIDENT = 2**26
"""Bytes of mapped files in memory past which their pages are given back."""
SECONDS = 0.02
"""Between two looks at them; each takes the interpreter away from who traces a model."""
NORESERVE = 0x4000 if sys.platform == "linux" else 0
"""MAP_NORESERVE, for which older Pythons have no name: memory need not be there for all that could be written."""
ALIGNED = 64
"""Bytes between two tensors' beginnings there divide by this."""


@dataclass
class Maps:
    """Files in memory, each mapped once.

    Attributes:
        scratch: the folder in which what lies in no file as it is, such as fused experts, is written to be mapped.
        private: whether files are mapped so that writing to a parameter changes no file: who does is found out, not killed.
        written: bytes in scratch.
        places: every file that is mapped, as ``mapped_as`` names it.
    """

    scratch: Path | None = None
    private: bool = False
    written: int = 0
    places: set[str] = field(default_factory=set)
    _files: dict[Path, mmap.mmap] = field(default_factory=dict)
    _open: tuple[IO[bytes], Path, int, int] | None = None

    def tensor(self, origin: LazyTensor, *, streamed: bool = True) -> torch.Tensor:
        """The values of a parameter, in its dtype.

        A checkpoint in half precision under float32 is mapped as it is and cast where it is read; unless ``streamed``, it
        is cast once, into scratch.
        """
        if streamed and origin.span is None and origin.unwidened is not None:
            return StreamedTensor(self.tensor(origin.unwidened), origin.dtype)
        span = origin.span
        if span is not None and span.offset % span.dtype.itemsize == 0:
            return self._span(span)
        return self._span(self._spilled(origin))

    def _span(self, span: Span) -> torch.Tensor:
        if not span.nbytes:
            return torch.empty(span.shape, dtype=span.dtype)
        if span.path not in self._files:
            with span.path.open("rb") as file:
                self._map(span.path, file.fileno())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it cannot be written to: nothing does
            count = span.nbytes // span.dtype.itemsize
            flat = torch.frombuffer(self._files[span.path], dtype=span.dtype, count=count, offset=span.offset)
        return flat.view(span.shape)

    def _map(self, key: Path, descriptor: int) -> None:
        self.places.add(mapped_as(descriptor))
        if self.private:
            flags, rights = mmap.MAP_PRIVATE | NORESERVE, mmap.PROT_READ | mmap.PROT_WRITE
            self._files[key] = mmap.mmap(descriptor, 0, flags=flags, prot=rights)
        else:
            self._files[key] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    def _spilled(self, origin: LazyTensor) -> Span:
        """The values in scratch."""
        size = origin.numel() * origin.dtype.itemsize
        pieces = (_content(piece) for piece in origin.pieces())
        path, offset = self._put(pieces, size)
        return Span(path, offset, size, origin.dtype, tuple(origin.shape))

    def put(self, content: memoryview) -> memoryview:
        """The same bytes as pages of a scratch file, which take no memory that the system could not use otherwise."""
        path, offset = self._put([content], len(content))
        return memoryview(self._files[path])[offset : offset + len(content)].toreadonly()

    def _put(self, pieces: Iterable[memoryview], size: int) -> tuple[Path, int]:
        """Write bytes to a file without a name, which goes away with the process; which file, and where in it."""
        if self._open is None or self._open[2] + size > self._open[3]:
            room = max(size, SCRATCH)
            made = tempfile.TemporaryFile(dir=self.scratch, buffering=0)  # noqa: SIM115
            made.truncate(room)
            key = Path(f"scratch {len(self._files)}")
            self._map(key, made.fileno())
            self._open = (made, key, 0, room)
        stream, key, offset, room = self._open
        done = 0
        for piece in pieces:
            done += write_all(stream.fileno(), piece, offset + done)
        if done != size:
            raise ValueError(f"{done} bytes came of {size}")
        self.written += size
        self._open = (stream, key, -(-(offset + size) // ALIGNED) * ALIGNED, room)
        return key, offset

    @contextmanager
    def given_back(self) -> Iterator[None]:
        """Within, pages are given back whenever more than ``RESIDENT`` bytes of files have come into memory."""
        least = 0

        def look(total: int, shared: int) -> None:
            nonlocal least
            least = least or shared
            if shared - least > RESIDENT:
                release(self.places)
                least = max(least, resident()[1])  # libraries that were loaded meanwhile stay

        with watched(look, SECONDS):
            yield


def _content(tensor: torch.Tensor) -> memoryview:
    return memoryview(cast("Any", tensor.contiguous().reshape(-1).view(torch.uint8).numpy()))


def attached(linked: Any, maps: Maps, *, streamed: bool = False) -> Any:
    """A copy of a linked model whose parameters are mapped, and know their origins; what has memory is shared.

    Nothing may write to them. ``streamed`` is as ``Maps.tensor`` takes it.
    """
    made: dict[int, Any] = {}
    for parameter in linked.parameters():
        origin = origin_of(parameter)
        made[id(parameter)] = parameter
        if origin is not None:
            made[id(parameter)] = nn.Parameter(maps.tensor(origin, streamed=streamed), requires_grad=False)
            setattr(made[id(parameter)], ORIGIN, origin)
    return copy.deepcopy(linked, made)


def mapped(linked: Any, maps: Maps) -> Any:
    """The same, ready to run in the memory of one tensor."""
    return one_by_one(attached(linked, maps, streamed=True))
