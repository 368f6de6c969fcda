"""One copy of every weight: graphs of one artefact share a data file."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from trueport.targets.onnx.lower import Graph

INLINE_LIMIT = 256 * 1024 * 1024
"""A single graph whose weights are smaller, in bytes, is one self-contained file; protobuf ends at 2 GB."""
SHARED_FROM = 256
"""Tensors below this many bytes stay inside the graph."""
ALIGNMENT = 64
"""Offsets in the data file are multiples of this, as BLAS kernels like them."""


def save(graphs: Sequence[Graph], folder: Path) -> list[Path]:
    """Write ``<stem>.onnx`` for each graph and, where needed, one data file for all; returns the files.

    Args:
        graphs: the artefact's graphs.
        folder: an existing folder.
    """
    tensors = {
        id(value): value.const_value
        for graph in graphs
        for value in graph.model.graph.initializers.values()
        if value.const_value is not None
    }
    total = sum(tensor.nbytes for tensor in tensors.values())
    files = []
    if len(graphs) > 1 or total > INLINE_LIMIT:
        # transformers.js looks for <graph>.onnx_data; the last graph (the decoder) holds most of the weights.
        data = folder / f"{graphs[-1].stem}.onnx_data"
        _externalize(graphs, data)
        files.append(data)
    for graph in graphs:
        path = folder / f"{graph.stem}.onnx"
        ir.save(graph.model, path)
        files.append(path)
    return files


def _externalize(graphs: Sequence[Graph], data: Path) -> None:
    """Move the large initializers into ``data``, equal bytes once."""
    placed: dict[bytes, tuple[int, int]] = {}
    with data.open("wb") as stream:
        for graph in graphs:
            for value in graph.model.graph.initializers.values():
                tensor = value.const_value
                if tensor is None or tensor.nbytes < SHARED_FROM or tensor.dtype == ir.DataType.STRING:
                    continue
                content = tensor.tobytes()
                key = hashlib.sha256(content).digest()
                if key not in placed:
                    stream.write(b"\0" * (-stream.tell() % ALIGNMENT))
                    placed[key] = (stream.tell(), len(content))
                    stream.write(content)
                offset, length = placed[key]
                value.const_value = ir.ExternalTensor(
                    data.name,
                    offset,
                    length,
                    tensor.dtype,
                    shape=ir.Shape(tuple(tensor.shape.numpy())),
                    name=value.name or "",
                    base_dir=data.parent,
                )
