"""The files that a graph's weights lie in; those with several hard links, as ``export --weights link`` leaves them, are
read here, as onnx-ir refuses to."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx_ir as ir

from trueport.errors import ArtifactError


def files(path: Path) -> list[Path]:
    """A checked graph's file, and those beside it that hold its weights."""
    from trueport.graphs.loading import check

    model = ir.from_proto(check(path))
    stored = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    beside = [path.parent / tensor.location for tensor in stored if isinstance(tensor, ir.ExternalTensor)]
    return [path, *dict.fromkeys(beside)]


def spare(places: Iterable[Path], kept: Iterable[Path]) -> None:
    """Refuse to write over files that are still needed.

    Args:
        places: what is to be written.
        kept: what must stay.

    Raises:
        ArtifactError: a place is one of these files, perhaps by another name.
    """
    needed = list(kept)
    for place in places:
        for file in needed:
            linked = place.exists() and file.exists() and place.samefile(file)
            if linked or place.resolve() == file.resolve():
                raise ArtifactError(
                    f"{place} would be written over {file.name}, which is needed", "Give another place."
                )


def readable(model: ir.Model) -> None:
    """Let such weights be read, in place; the graph has to be checked already, so that every file is one of its own."""
    for graph in model.graphs():
        for value in graph.initializers.values():
            tensor = value.const_value
            if isinstance(tensor, ir.ExternalTensor) and os.stat(tensor.path).st_nlink > 1:
                value.const_value = ir.LazyTensor(
                    functools.partial(_read, tensor), tensor.dtype, tensor.shape, name=tensor.name
                )


def outside(model: ir.Model) -> bool:
    """Whether weights lie in files beside the graph."""
    kinds = (ir.ExternalTensor, ir.LazyTensor)
    return any(isinstance(value.const_value, kinds) for value in model.graph.initializers.values())


def _read(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """The tensor's own bytes of its file."""
    import onnx

    proto = onnx.TensorProto(name=tensor.name or "", data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    with Path(tensor.path).open("rb") as file:
        proto.raw_data = np.fromfile(file, np.uint8, tensor.nbytes, offset=tensor.offset or 0).tobytes()
    return ir.TensorProtoTensor(proto)
