"""Caches in flat buffers of the program itself: keys and values written behind the past, states in place of the last."""

from __future__ import annotations

import math
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.cache_utils import DummyLayer, DynamicCache

from trueport.interface import Tensor
from trueport.roles.caches import GraphLayer
from trueport.roles.layers import KEY, VALUE, HybridLayer, RecurrentLayer, Slot, tensors_of_slots


@dataclass(frozen=True)
class Places:
    """Where the rows of a batch lie in a flat buffer, (rows * heads * length, head_size).

    Attributes:
        written: (batch * heads * new) of the tokens that are new.
        seen: (batch, heads, past + new) of all tokens so far.
    """

    written: torch.Tensor
    seen: torch.Tensor


class _Written:
    """Keys and values in flat buffers of the program.

    What is new is written behind the first ``past`` tokens; what is given to the attention is what has been written.
    The buffers are flat as ExecuTorch writes in place only along one axis, by one index.
    """

    keys: Any
    values: Any
    past: int
    places: Places

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """New keys and values, (batch, heads, new, head_size), to all of them, (batch, heads, past + new, head_size)."""
        return self._written(self.keys, key_states), self._written(self.values, value_states)

    def _written(self, buffer: Any, states: torch.Tensor) -> torch.Tensor:
        buffer.index_put_((self.places.written,), states.reshape(-1, states.shape[-1]))
        # A gather copies what has been written; a view of the buffer would copy all of it at every step.
        return nn.functional.embedding(self.places.seen, buffer)

    def get_seq_length(self) -> int:
        """Tokens in the cache."""
        return self.past


class KeptLayer(_Written, GraphLayer):
    """A layer with keys and values."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, past: int, places: Places) -> None:
        GraphLayer.__init__(self, keys, values)
        self.past, self.places = past, places


class KeptHybridLayer(_Written, HybridLayer):  # type: ignore[misc,override]  # as transformers has it
    """A layer with both, states and keys and values."""

    def __init__(
        self,
        keys: torch.Tensor,
        values: torch.Tensor,
        past: int,
        places: Places,
        states: Mapping[tuple[str, int], torch.Tensor],
    ) -> None:
        HybridLayer.__init__(self, keys, values, states)
        self.past, self.places = past, places


class Kept:
    """The buffers of a module that hold its cache, one for each slot, and what the cache is made of.

    Keys and values, (rows, heads, length, head_size), lie in (rows * heads * length, head_size); a state, (rows, ...), in
    (rows, all the rest).
    """

    def __init__(self, module: nn.Module, tensors: Sequence[Tensor], layers: Sequence[Sequence[Slot]]) -> None:
        self.layers = layers
        self.slots = [slot for slots in layers for slot in slots]
        self.names = [tensor.name.replace(".", "_") for tensor in tensors]
        self.lengths = [int(tensor.shape[2]) if slot.grows else 0 for tensor, slot in self._with(tensors)]
        for name, (tensor, slot) in zip(self.names, self._with(tensors), strict=True):
            sizes = [int(axis) for axis in tensor.shape]
            flat = (math.prod(sizes[:3]), sizes[3]) if slot.grows else (sizes[0], math.prod(sizes[1:]))
            module.register_buffer(name, _untouched(flat, getattr(torch, tensor.dtype)), persistent=False)

    def _with(self, given: Sequence[Any]) -> list[tuple[Any, Slot]]:
        return list(zip(given, self.slots, strict=True))

    def cache(self, module: nn.Module, batch: int, past: int, new: int) -> DynamicCache:
        """The cache of ``batch`` rows that have read ``past`` tokens and read ``new`` ones now.

        Without a past the states are zeros, whatever an earlier run left.
        """
        buffers = self._buffers(module)
        rows = torch.arange(batch)
        begun = (torch.arange(1) + past).bool()
        places: dict[tuple[int, int], Places] = {}
        cache = DynamicCache()
        given = iter(zip(buffers, self.lengths, strict=True))
        for slots in self.layers:
            held, place = {}, None
            for slot, (buffer, length) in zip(slots, given, strict=False):
                if slot.grows:
                    heads = slot.rest[0]
                    if (heads, length) not in places:  # once for all layers
                        places[heads, length] = _places(batch, heads, length, past, new)
                    place = places[heads, length]
                    held[slot.place] = buffer
                else:
                    state = nn.functional.embedding(rows, buffer)
                    held[slot.place] = torch.where(begun, state, 0.0).view(batch, *slot.rest)
            cache.layers.append(_layer(held, past, place))
        return cache

    def keep(self, module: nn.Module, cache: Any, batch: int) -> None:
        """Write the states that the cache holds now where they came from."""
        rows = torch.arange(batch)
        for buffer, (tensor, slot) in zip(
            self._buffers(module), self._with(tensors_of_slots(self.layers, cache)), strict=True
        ):
            if not slot.grows:
                buffer.index_put_((rows,), tensor.reshape(batch, math.prod(slot.rest)).to(buffer.dtype))

    def _buffers(self, module: nn.Module) -> list[Any]:
        return [getattr(module, name) for name in self.names]


def pairs_of(tensors: Sequence[Tensor]) -> list[list[Slot]]:
    """The layers of keys and values in turn, (rows, heads, length, head_size) each."""

    def slot(name: str, tensor: Tensor) -> Slot:
        return Slot(name, tensor.dtype, (int(tensor.shape[1]), -1, int(tensor.shape[3])))

    return [[slot(KEY, keys), slot(VALUE, values)] for keys, values in zip(tensors[::2], tensors[1::2], strict=True)]


def _places(batch: int, heads: int, length: int, past: int, new: int) -> Places:
    starts = (torch.arange(batch * heads) * length).view(batch, heads, 1)
    written = (starts + torch.arange(new) + past).reshape(-1)
    return Places(written, starts + torch.arange(past + new))


def _layer(held: dict[tuple[str, int], torch.Tensor], past: int, places: Places | None) -> Any:
    keys, values = held.pop((KEY, 0), None), held.pop((VALUE, 0), None)
    if keys is None or values is None or places is None:
        return RecurrentLayer(held) if held else DummyLayer()
    return KeptHybridLayer(keys, values, past, places, held) if held else KeptLayer(keys, values, past, places)


def _untouched(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """Zeros that take no memory until they are written to, and then a small page; ``torch.zeros`` writes them."""
    size = math.prod(shape) * dtype.itemsize
    if not size:
        return torch.zeros(shape, dtype=dtype)
    own = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANON} if hasattr(mmap, "MAP_PRIVATE") else {}  # shared: taken when read
    return torch.frombuffer(mmap.mmap(-1, size, **own), dtype=dtype).view(shape)
