"""Key-value caches built from a graph's inputs, of any length, 0 included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer, EncoderDecoderCache


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
