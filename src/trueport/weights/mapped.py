"""A checkpoint's model whose parameters are pages of its files: the system reads them when they are used, and may drop
them at any time."""

from __future__ import annotations

import copy
import mmap
import os
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from trueport.weights.lazy import LazyTensor, Span
from trueport.weights.linked import origin_of
from trueport.weights.streamed import StreamedTensor, one_by_one


def mapped_as(descriptor: int) -> str:
    """Device and inode of a file as the system's list of mappings names it; empty where there is no such list.

    That is not what fstat says on btrfs, whose every subvolume has a device of its own: the file is mapped, and looked for.
    """
    listed, size = Path("/proc/self/maps"), os.fstat(descriptor).st_size
    if not size or not listed.exists():
        return ""
    with mmap.mmap(descriptor, min(size, mmap.PAGESIZE), access=mmap.ACCESS_READ) as probe:
        address = np.frombuffer(probe, np.uint8, 1).ctypes.data
        for line in listed.read_text().splitlines():
            span, _, _, device, inode = line.split(maxsplit=5)[:5]
            start, end = (int(edge, 16) for edge in span.split("-"))
            if start <= address < end:
                return f"{device} {inode}"
    return ""


@dataclass
class Maps:
    """Files in memory, each mapped once.

    Attributes:
        scratch: the folder in which what lies in no file as it is, such as fused experts, is written to be mapped.
        written: its bytes.
        places: every file that is mapped, as ``mapped_as`` names it.
    """

    scratch: Path | None = None
    written: int = 0
    places: set[str] = field(default_factory=set)
    _files: dict[Path, mmap.mmap] = field(default_factory=dict)

    def tensor(self, origin: LazyTensor) -> torch.Tensor:
        """The values of a parameter, in its dtype."""
        # A checkpoint in half precision under float32: what is mapped is the half, and is cast where it is read.
        if origin.span is None and origin.unwidened is not None:
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
        self._files[key] = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)

    def _spilled(self, origin: LazyTensor) -> Span:
        """The values in a file without a name, which goes away with the process."""
        key, size = Path(f"scratch {len(self._files)}"), 0
        with tempfile.TemporaryFile(dir=self.scratch, buffering=0) as file:
            for piece in origin.pieces():
                content = memoryview(cast("Any", piece.contiguous().reshape(-1).view(torch.uint8).numpy()))
                while content:  # a single write ends at 2 GB
                    content = content[file.write(content) :]
                size += piece.nbytes
            self.written += size
            if size:
                self._map(key, file.fileno())
        return Span(key, 0, size, origin.dtype, tuple(origin.shape))


def mapped(linked: Any, maps: Maps) -> Any:
    """A copy of a linked model, ready to run, whose parameters are mapped; what has memory already is shared."""
    made: dict[int, Any] = {}
    for parameter in linked.parameters():
        origin = origin_of(parameter)
        made[id(parameter)] = parameter if origin is None else nn.Parameter(maps.tensor(origin), requires_grad=False)
    return one_by_one(copy.deepcopy(linked, made))
