"""Key-value caches built from a graph's inputs, of any length, 0 included."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache

from trueport.interface import Tensor


class GraphLayer(DynamicLayer):
    """A cache layer around given tensors, (batch, heads, past, head_size), that asks them nothing.

    ``DynamicLayer.get_seq_length`` tests ``numel() == 0``; traced, that test becomes a guard against the empty cache.
    Sliding layers are given whole keys too: the mask enforces the window, so every chunking is the same function.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.device = keys.device
        self.keys, self.values = keys, values
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens in the cache."""
        assert self.keys is not None
        return self.keys.shape[-2]


def graph_cache(tensors: Sequence[torch.Tensor]) -> DynamicCache:
    """A cache from keys and values in turn, one pair for each layer."""
    cache = DynamicCache()
    cache.layers = [GraphLayer(k, v) for k, v in zip(tensors[::2], tensors[1::2], strict=True)]
    return cache


@dataclass(frozen=True)
class Places:
    """Where the rows of a batch lie in a flat buffer, (rows * heads * length, head_size).

    Attributes:
        written: (batch * heads * new) of the tokens that are new.
        seen: (batch, heads, past + new) of all tokens so far.
    """

    written: torch.Tensor
    seen: torch.Tensor


class KeptLayer(GraphLayer):
    """A cache layer whose keys and values live in flat buffers of the program.

    What is new is written behind the first ``past`` tokens; what is given to the attention is what has been written.
    The buffers are flat as ExecuTorch writes in place only along one axis, by one index.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, past: int, places: Places) -> None:
        super().__init__(keys, values)
        self.past, self.places = past, places

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """New keys and values, (batch, heads, new, head_size), to all of them, (batch, heads, past + new, head_size)."""
        return self._written(self.keys, key_states), self._written(self.values, value_states)

    def _written(self, buffer: Any, states: torch.Tensor) -> torch.Tensor:
        buffer.index_put_((self.places.written,), states.reshape(-1, states.shape[-1]))
        # A gather copies what has been written; a view of the buffer would copy all of it at every step.
        return torch.nn.functional.embedding(self.places.seen, buffer)

    def get_seq_length(self) -> int:
        """Tokens in the cache."""
        return self.past


def kept_cache(
    buffers: Sequence[torch.Tensor], kept: Sequence[Tensor], batch: int, past: int, new: int
) -> DynamicCache:
    """A cache in the program's own flat buffers, keys and values in turn, of which ``past`` tokens are filled.

    Args:
        buffers: (rows * heads * length, head_size) each.
        kept: what they hold, (rows, heads, length, head_size).
        batch: rows in use.
        past: tokens that have been written.
        new: tokens that will be.
    """
    found: dict[tuple[int, int], Places] = {}
    for tensor in kept:
        heads, length = int(tensor.shape[1]), int(tensor.shape[2])
        if (heads, length) not in found:  # once for all layers
            starts = (torch.arange(batch * heads) * length).view(batch, heads, 1)
            written = (starts + torch.arange(new) + past).reshape(-1)
            found[heads, length] = Places(written, starts + torch.arange(past + new))
    places = [found[int(tensor.shape[1]), int(tensor.shape[2])] for tensor in kept[::2]]
    cache = DynamicCache()
    pairs = zip(buffers[::2], buffers[1::2], places, strict=True)
    cache.layers = [KeptLayer(keys, values, past, place) for keys, values, place in pairs]
    return cache


def given_cross_cache(own: DynamicCache, cross: Sequence[torch.Tensor]) -> EncoderDecoderCache:
    """The self-attention cache beside cross-attention keys and values that the encoder gave, complete."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache.self_attention_cache = own
    cache.cross_attention_cache = graph_cache(cross)
    cache.is_updated = dict.fromkeys(range(len(cross) // 2), True)
    return cache


def graph_cross_cache(own: Sequence[torch.Tensor], cross: Sequence[torch.Tensor]) -> EncoderDecoderCache:
    """Self- and cross-attention caches whose cross part always projects what it is given and appends it."""
    cache = EncoderDecoderCache(DynamicCache(), DynamicCache())
    cache.self_attention_cache = graph_cache(own)
    cache.cross_attention_cache = graph_cache(cross)
    cache.is_updated = dict.fromkeys(range(len(cross) // 2), False)
    return cache


def cache_tensors(cache: Cache) -> list[torch.Tensor]:
    """Keys and values in turn, layer by layer."""
    layers: list[Any] = list(cache.layers)
    return [tensor for layer in layers for tensor in (layer.keys, layer.values)]
