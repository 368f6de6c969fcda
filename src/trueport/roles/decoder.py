"""Causal language models: one graph for prefill, chunks and single steps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from trueport.cache_names import cache_of, given_cache
from trueport.errors import CaptureError
from trueport.interface import PAST, Dimension, Interface, StatePair, Tensor
from trueport.roles.component import Component, float_dtype, position_bound, signature, trace_sizes
from trueport.roles.layers import Slot, cache_of_slots, slots_of, tensors_of_slots
from trueport.roles.probing import itself

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DecoderModule(nn.Module):
    """The whole model's forward over a cache that the inputs hold.

    Where no layer keeps tokens, nothing in the model tells how long the past is, and its mask is that of the new tokens.
    """

    def __init__(self, model: nn.Module, pairs: tuple[StatePair, ...], layers: list[list[Slot]]) -> None:
        super().__init__()
        self.model = model
        self.pairs = pairs
        self.layers = layers
        self.forgets = not any(slot.grows for slots in layers for slot in slots)

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to ``logits`` and the next state."""
        cache = cache_of_slots(self.layers, [inputs.pop(pair.input) for pair in self.pairs])
        if self.forgets and "attention_mask" in inputs:
            inputs["attention_mask"] = inputs["attention_mask"][:, -inputs["input_ids"].shape[1] :]
        result = self.model(**inputs, **given_cache(self.model, cache), use_cache=True, return_dict=True)
        present = tensors_of_slots(self.layers, cache_of(result))
        return {"logits": result.logits} | {pair.output: t for pair, t in zip(self.pairs, present, strict=True)}


def components(model: PreTrainedModel) -> list[Component]:
    """The one component of a causal language model with cache."""
    layers = _probe_cache(model)
    dtype = float_dtype(model)
    total = f"{PAST} + sequence_length"
    inputs = [Tensor("input_ids", "int64", ("batch_size", "sequence_length"))]
    if "attention_mask" in signature(model):
        inputs.append(Tensor("attention_mask", "int64", ("batch_size", total)))
    if "position_ids" in signature(model):
        inputs.append(Tensor("position_ids", "int64", ("batch_size", "sequence_length")))
    outputs = [Tensor("logits", dtype, ("batch_size", "sequence_length", model.config.get_text_config().vocab_size))]
    pairs = []
    for index, slots in enumerate(layers):
        for slot in slots:
            name = f"{index}.{slot.name}"
            past, present = (tuple(axis if n == -1 else n for n in slot.rest) for axis in (PAST, total))
            inputs.append(Tensor(f"past_key_values.{name}", slot.dtype, ("batch_size", *past)))
            outputs.append(Tensor(f"present.{name}", slot.dtype, ("batch_size", *present)))
            names = f"past_key_values.{name}", f"present.{name}"
            pairs.append(StatePair(*names, axis=2) if slot.grows else StatePair(*names, axis=0, initial="zeros"))
    bound, because = position_bound(model)
    interface = Interface(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        dimensions=(
            Dimension("batch_size"),
            Dimension("sequence_length", 1, bound, because),
            Dimension(PAST, 0, None if bound is None else bound - 1, because),
        ),
        state=tuple(pairs),
    )
    module = DecoderModule(model, tuple(pairs), layers)
    return [Component("model", "model", module, interface, trace_sizes(interface))]


def _probe_cache(model: PreTrainedModel) -> list[list[Slot]]:
    """What each layer keeps, by running the model over two tokens."""
    from trueport.graphs.stamping.shorten import of_each_layer

    layers = of_each_layer(model, model.config, lambda: _probed(model))
    if None in layers:
        raise CaptureError(
            f"Layer {layers.index(None)} of {type(model).__name__} has a place in the cache and writes nothing to it",
            "Give --task feature-extraction for one pass without a state.",
        )
    return layers


def _probed(model: PreTrainedModel) -> list[list[Slot] | None]:
    """The same; None for a layer that did not run."""
    tokens = 2
    with itself(model, "two tokens"):
        result = model(input_ids=torch.zeros(1, tokens, dtype=torch.long), use_cache=True, return_dict=True)
    return slots_of(model, cache_of(result), tokens)
