"""What each layer of a decoder keeps from step to step: keys and values, convolution and recurrent states, or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import (
    DummyLayer,
    DynamicCache,
    EncoderDecoderCache,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from trueport.errors import CaptureError
from trueport.roles.caches import GraphLayer

KEY, VALUE, CONVOLVED, RECURRENT = "key", "value", "conv_state", "recurrent_state"


@dataclass(frozen=True)
class Slot:
    """One tensor that a layer keeps.

    Attributes:
        name: ``key`` or ``value``; ``conv_state`` or ``recurrent_state``, and ``conv_state_1`` where a layer has several.
        dtype: its name.
        rest: the axes behind the rows; -1 is that of the tokens.
    """

    name: str
    dtype: str
    rest: tuple[int, ...]

    @property
    def grows(self) -> bool:
        """Whether it is as long as the past."""
        return -1 in self.rest

    @property
    def place(self) -> tuple[str, int]:
        """What it is, and its number among the layer's own of that kind."""
        kind, _, number = self.name.rpartition("_")
        return (kind, int(number)) if number.isdigit() else (self.name, 0)


class _Given:
    """States that a graph is given, of which nothing is asked: before the first step they are zeros.

    A convolution over zeros and what is new is the one over what is new, padded; so there is no first step that differs.
    """

    conv_states: dict[int, Any]
    recurrent_states: dict[int, Any]

    def take(self, states: Mapping[tuple[str, int], torch.Tensor]) -> None:
        """Hold these, by kind and number."""
        numbers = range(1 + max((number for _, number in states), default=0))
        self.conv_states = {number: states.get((CONVOLVED, number)) for number in numbers}
        self.recurrent_states = {number: states.get((RECURRENT, number)) for number in numbers}
        self.has_previous_state = dict.fromkeys(numbers, True)
        self.number_of_states = len(numbers)

    def update_conv_state(self, conv_states: torch.Tensor, state_idx: int = 0, **_: Any) -> torch.Tensor:
        """New entries, (batch, channels, new), to those before and them; the last ones are kept."""
        past = self.conv_states[state_idx]
        whole = torch.cat([past, conv_states], dim=-1)
        self.conv_states[state_idx] = whole[..., -past.shape[-1] :]
        return whole

    def update_recurrent_state(self, recurrent_states: torch.Tensor, state_idx: int = 0, **_: Any) -> torch.Tensor:
        """The next state in place of the last."""
        self.recurrent_states[state_idx] = recurrent_states.to(self.recurrent_states[state_idx].dtype)
        return recurrent_states


class RecurrentLayer(_Given, LinearAttentionLayer):  # type: ignore[misc]  # a state's own arguments are not read
    """A layer with convolution and recurrent states, any of either."""

    def __init__(self, states: Mapping[tuple[str, int], torch.Tensor]) -> None:
        LinearAttentionLayer.__init__(self)
        self.take(states)


class HybridLayer(_Given, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc,override]  # as transformers has it
    """A layer with both, states and (batch, heads, past, head_size) keys and values."""

    def __init__(
        self, keys: torch.Tensor, values: torch.Tensor, states: Mapping[tuple[str, int], torch.Tensor]
    ) -> None:
        LinearAttentionAndFullAttentionLayer.__init__(self)
        self.take(states)
        self.keys, self.values = keys, values
        self.is_initialized = True

    def get_seq_length(self) -> int:
        """Tokens in the cache."""
        assert self.keys is not None
        return self.keys.shape[-2]


def slots_of(model: Any, cache: Any, tokens: int) -> list[list[Slot] | None]:
    """What each layer keeps, found in a cache of one row and ``tokens`` tokens; None for a layer that did not run.

    Raises:
        CaptureError: something else than keys, values and states.
    """
    layers = getattr(_own_part(cache), "layers", None)
    if layers is None or not all(_is_known(layer) for layer in layers):
        kind = type(cache).__name__
        raise CaptureError(
            f"{type(model).__name__} keeps a state that is neither a key-value cache nor a recurrent state in one ({kind})",
            "Give --task feature-extraction for one pass without a state.",
        )
    found: list[list[Slot] | None] = []
    for layer in layers:
        slots = _grown(model, layer, tokens) + _fixed(layer)
        found.append(slots if slots or isinstance(layer, DummyLayer) else None)
    return found


def _own_part(cache: Any) -> Any:
    """The self-attention's half of a cache for two attentions where the other half is empty: Megatron-BERT, RemBERT."""
    if not isinstance(cache, EncoderDecoderCache):
        return cache
    other = cache.cross_attention_cache.layers
    return cache.self_attention_cache if not any(getattr(layer, "is_initialized", True) for layer in other) else None


def _is_known(layer: Any) -> bool:
    return hasattr(layer, "keys") or isinstance(layer, LinearAttentionCacheLayerMixin)


def _grown(model: Any, layer: Any, tokens: int) -> list[Slot]:
    """Keys and values; a layer that slides over as many tokens as there are has forgotten the first."""
    slots = []
    kept = tokens - 1 if getattr(layer, "sliding_window", None) == tokens else tokens
    for name, tensor in ((KEY, getattr(layer, "keys", None)), (VALUE, getattr(layer, "values", None))):
        if tensor is None:
            continue
        if tensor.ndim != 4 or tensor.shape[0] != 1 or tensor.shape[2] != kept:
            raise CaptureError(
                f"{type(model).__name__} caches keys of shape {tuple(tensor.shape)} for 1 row of {tokens} tokens, "
                "where (batch, heads, tokens, head_size) was expected"
            )
        slots.append(Slot(name, _dtype(tensor), (tensor.shape[1], -1, tensor.shape[3])))
    return slots


def _fixed(layer: Any) -> list[Slot]:
    slots = []
    for kind, states in ((CONVOLVED, "conv_states"), (RECURRENT, "recurrent_states")):
        for number, tensor in getattr(layer, states, {}).items():
            if tensor is not None:
                name = f"{kind}_{number}" if number else kind
                slots.append(Slot(name, _dtype(tensor), tuple(tensor.shape[1:])))
    return slots


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def cache_of_slots(layers: Sequence[Sequence[Slot]], tensors: Sequence[torch.Tensor]) -> DynamicCache:
    """A cache around given tensors, in the order of the slots."""
    given = iter(tensors)
    cache = DynamicCache()
    cache.layers = [_layer({slot.place: next(given) for slot in slots}) for slots in layers]
    return cache


def _layer(held: dict[tuple[str, int], torch.Tensor]) -> Any:
    keys, values = held.pop((KEY, 0), None), held.pop((VALUE, 0), None)
    if keys is None or values is None:
        return RecurrentLayer(held) if held else DummyLayer()
    return HybridLayer(keys, values, held) if held else GraphLayer(keys, values)


def tensors_of_slots(layers: Sequence[Sequence[Slot]], cache: Any) -> list[torch.Tensor]:
    """What ``cache_of_slots`` was given, as the cache holds it now."""
    return [_held(layer, *slot.place) for slots, layer in zip(layers, cache.layers, strict=True) for slot in slots]


def _held(layer: Any, kind: str, number: int) -> torch.Tensor:
    tensor: torch.Tensor
    if kind in (KEY, VALUE):
        tensor = layer.keys if kind == KEY else layer.values
    else:
        tensor = (layer.conv_states if kind == CONVOLVED else layer.recurrent_states)[number]
    return tensor
