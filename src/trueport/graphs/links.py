"""Weights in files with several hard links, as ``export --weights link`` leaves them: onnx-ir refuses to read these."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import numpy as np
import onnx_ir as ir


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
