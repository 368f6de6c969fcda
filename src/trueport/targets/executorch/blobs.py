"""The bytes that a program is written from, left where they lie: as tensors, in the pages of files.

ExecuTorch copies the bytes of each weight to hash them, to keep them and to write them. Within ``uncopied`` it gets views.
"""

from __future__ import annotations

import copy
import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from executorch.backends.xnnpack.operators import node_visitor
from executorch.exir._serialize import _program
from executorch.exir._serialize._cord import Cord
from executorch.exir.emit import _emitter

from trueport.errors import LoweringError
from trueport.weights.mapped import Maps

LARGE = 2**20
"""Bytes of what no lasting tensor holds, such as a matrix that was transposed, from which on they go to a scratch file."""
Blob = bytes | memoryview

_view_of = ctypes.pythonapi.PyMemoryView_FromMemory
_view_of.restype = ctypes.py_object
_view_of.argtypes = (ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)
_READ = 0x100
"""PyBUF_READ: a view that cannot be written to."""


class Blobs:
    """What is to be written, each as a view of a tensor that is kept alive here, of a scratch file, or as bytes.

    Args:
        maps: whose scratch is written to.
    """

    def __init__(self, maps: Maps) -> None:
        self.maps = maps
        self._views: dict[tuple[int, int], tuple[torch.Tensor, memoryview]] = {}
        self._last: memoryview | None = None

    def hold(self, tensor: torch.Tensor) -> memoryview | None:
        """A view of the tensor's storage, the same for one storage; None where it has none, or no bytes.

        The tensor is kept alive as long as this object, and has to stay as it is.
        """
        if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.device.type != "cpu":
            return None
        storage = tensor.untyped_storage()
        key = storage.data_ptr(), storage.nbytes()
        if not all(key):
            return None
        if key not in self._views:
            self._views[key] = tensor, _view_of(*key, _READ)
        return self._views[key][1]

    def take(self, *given: Any) -> Blob:
        """What stands in the place of ``bytes`` where ExecuTorch takes a weight's, as an array of the address."""
        if len(given) != 1 or not isinstance(given[0], ctypes.Array):
            return bytes(*given)
        address, size = ctypes.addressof(given[0]), ctypes.sizeof(given[0])
        if (address, size) in self._views:
            return self._views[address, size][1]
        if size < LARGE:
            return bytes(given[0])
        content = _view_of(address, size, _READ)
        # Its bytes are taken twice, to hash and to keep.
        if self._last is None or self._last != content:
            self._last = self.maps.put(content)
        return self._last


@contextmanager
def uncopied(blobs: Blobs) -> Iterator[None]:
    """While inside, ExecuTorch's programs and data files are put together from the views that ``blobs`` gives.

    Raises:
        LoweringError: this ExecuTorch takes no bytes where they are to be replaced.
    """
    append = Cord.append

    def appended(self: Any, data: Any) -> None:
        if isinstance(data, memoryview):
            self._buffers.append(data)
            self._byte_size += len(data)
        else:
            append(self, data)

    def deepcopy(program: Any) -> Any:
        """A copy of an ExecuTorch program around the same bytes, which nothing writes to."""
        return copy.deepcopy(program, {id(buffer.storage): buffer.storage for buffer in program.constant_buffer})

    _check()
    with (
        mock.patch.object(node_visitor, "bytes", blobs.take, create=True),
        mock.patch.object(_emitter, "bytes", blobs.take, create=True),
        mock.patch.object(_program, "copy", SimpleNamespace(deepcopy=deepcopy)),
        mock.patch.object(Cord, "append", appended),
    ):
        yield


def _check() -> None:
    """Refuse an ExecuTorch that does not copy its bytes where this module knows it to."""
    codes = (node_visitor.NodeVisitor.get_serialized_buffer_index, _emitter._Emitter._tensor_spec_to_evalue)
    if any("bytes" not in code.__code__.co_names for code in codes) or not hasattr(_program, "copy"):
        raise LoweringError(
            "This ExecuTorch takes the bytes of weights in another way than 1.4, so that they cannot be left in place",
            "Install executorch 1.4.",
        )
