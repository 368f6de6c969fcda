"""A linked model's weights held against the checkpoint by other means, one at a time.

A proof in little memory takes its reference's weights from where the artefact has its own: a wrong place would be wrong in
both, and seen by nobody. Here safetensors' own reader finds each tensor by its name, and torch's own operators, on values,
do what transformers did to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch.utils._pytree import tree_map

from trueport.errors import TrueportError
from trueport.weights.lazy import PIECE, LazyTensor
from trueport.weights.linked import origin_of
from trueport.weights.streamed import StreamedTensor

_aten = torch.ops.aten
SAME = {_aten.detach.default, _aten.alias.default, _aten.clone.default, _aten._to_copy.default}
"""Operators that give every element for itself, in the order in which they are given it."""
COPIES = 3
"""Times a weight's bytes that it takes to make it of several of the checkpoint's tensors: they, it, and what it is held
against."""


class Reader:
    """The tensors of safetensors files by name, each file opened once."""

    def __init__(self) -> None:
        self._files: dict[Path, Any] = {}

    def values(self, lazy: LazyTensor) -> torch.Tensor:
        """All values, computed as transformers would have."""
        if lazy.leaf is not None:
            found: torch.Tensor = self._file(lazy.leaf.path).get_tensor(lazy.leaf.name)
            return found
        assert lazy.recipe is not None
        func, args, kwargs, index = lazy.recipe
        result = func(*tree_map(self._evaluated, args), **tree_map(self._evaluated, kwargs))
        return result if index is None else result[index]

    def pieces(self, lazy: LazyTensor) -> Iterator[torch.Tensor]:
        """The values in order; in pieces along the first axis where nothing but casts lies between them and a file."""
        if lazy.recipe is not None and lazy.recipe[0] in SAME:
            for piece in self.pieces(lazy.recipe[1][0]):
                yield piece.to(lazy.dtype)
        elif lazy.leaf is not None and lazy.ndim and lazy.shape[0]:
            part = self._file(lazy.leaf.path).get_slice(lazy.leaf.name)
            step = max(1, PIECE * lazy.shape[0] // max(lazy.leaf.nbytes, 1))
            for start in range(0, lazy.shape[0], step):
                yield part[start : start + step]
        else:
            yield self.values(lazy)

    def _evaluated(self, value: Any) -> Any:
        return self.values(value) if isinstance(value, LazyTensor) else value

    def _file(self, path: Path) -> Any:
        if path not in self._files:
            self._files[path] = safe_open(path, "pt").__enter__()  # its pages go with the last reference to it
        return self._files[path]


def is_one_by_one(lazy: LazyTensor) -> bool:
    """Whether a weight is one tensor of the checkpoint, cast at most."""
    while lazy.recipe is not None and lazy.recipe[0] in SAME:
        lazy = lazy.recipe[1][0]
    return lazy.leaf is not None


def hold(mapped: Any, linked: Any, most: float) -> list[str]:
    """Hold the parameters of a model in pages of files against what the checkpoint says they are.

    Args:
        mapped: the model that is to be the reference.
        linked: the same without memory, whose parameters know where they come from.
        most: bytes that a weight of several tensors may take for this.

    Returns:
        The names of the weights that would take more, and were not held.

    Raises:
        TrueportError: one is not what it should be, and would be wrong in artefact and reference alike.
    """
    reader, left = Reader(), list[str]()
    own = dict(mapped.named_parameters())
    for name, parameter in linked.named_parameters():
        origin = origin_of(parameter)
        if origin is None:
            continue
        if not is_one_by_one(origin) and COPIES * origin.numel() * origin.dtype.itemsize > most:
            left.append(name)
        elif not _equal(own[name].detach(), reader.pieces(origin)):
            raise TrueportError(
                f"{name} was not found in the checkpoint as transformers loads it, which is a fault of Trueport's",
                "Report it; a larger --proof-memory loads the original whole, and shows what comes of it.",
            )
    return left


def _equal(values: torch.Tensor, pieces: Iterator[torch.Tensor]) -> bool:
    """Whether the pieces are the values, bit by bit and all of them."""
    stored = (values.stored if isinstance(values, StreamedTensor) else values).detach().reshape(-1)
    done = 0
    for piece in pieces:
        part = stored[done : done + piece.numel()].to(values.dtype)
        if piece.dtype != values.dtype or not torch.equal(_bits(part), _bits(piece)):
            return False
        done += piece.numel()
    return done == values.numel()


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
