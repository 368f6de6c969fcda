"""Causal language models: one graph for prefill, chunks and single steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trueport.cache_names import cache_of, given_cache
from trueport.errors import CaptureError
from trueport.interface import Dimension, Interface, StatePair, Tensor
from trueport.roles.caches import cache_tensors, graph_cache
from trueport.roles.component import Component, float_dtype, position_bound, signature, trace_sizes
from trueport.roles.probing import itself

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DecoderModule(nn.Module):
    """The whole model's forward over a cache that the inputs hold."""

    def __init__(self, model: nn.Module, pairs: tuple[StatePair, ...]) -> None:
        super().__init__()
        self.model = model
        self.pairs = pairs

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to ``logits`` and the grown cache."""
        past = [inputs.pop(pair.input) for pair in self.pairs]
        result = self.model(**inputs, **given_cache(self.model, graph_cache(past)), use_cache=True, return_dict=True)
        present = cache_tensors(cache_of(result))
        return {"logits": result.logits} | {pair.output: t for pair, t in zip(self.pairs, present, strict=True)}


def components(model: PreTrainedModel) -> list[Component]:
    """The one component of a causal language model with cache."""
    shapes = _probe_cache(model)
    dtype = float_dtype(model)
    past, total = "past_sequence_length", "past_sequence_length + sequence_length"
    inputs = [Tensor("input_ids", "int64", ("batch_size", "sequence_length"))]
    if "attention_mask" in signature(model):
        inputs.append(Tensor("attention_mask", "int64", ("batch_size", total)))
    if "position_ids" in signature(model):
        inputs.append(Tensor("position_ids", "int64", ("batch_size", "sequence_length")))
    outputs = [Tensor("logits", dtype, ("batch_size", "sequence_length", model.config.get_text_config().vocab_size))]
    pairs = []
    for index, (heads, size) in enumerate(shapes):
        name = f"{index // 2}.{'value' if index % 2 else 'key'}"
        inputs.append(Tensor(f"past_key_values.{name}", dtype, ("batch_size", heads, past, size)))
        outputs.append(Tensor(f"present.{name}", dtype, ("batch_size", heads, total, size)))
        pairs.append(StatePair(f"past_key_values.{name}", f"present.{name}", axis=2))
    bound, because = position_bound(model)
    interface = Interface(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        dimensions=(
            Dimension("batch_size"),
            Dimension("sequence_length", 1, bound, because),
            Dimension("past_sequence_length", 0, None if bound is None else bound - 1, because),
        ),
        state=tuple(pairs),
    )
    return [Component("model", "model", DecoderModule(model, tuple(pairs)), interface, trace_sizes(interface))]


def _probe_cache(model: PreTrainedModel) -> list[tuple[int, int]]:
    """(heads, head_size) of every key and value, in turn, by running the model over two tokens."""
    from trueport.graphs.stamping.shorten import of_each_layer

    layers = of_each_layer(model, model.config, lambda: _probed(model))
    if None in layers:
        raise CaptureError(
            f"Layer {layers.index(None)} of {type(model).__name__} has a place in the cache and writes nothing to it",
            "Give --task feature-extraction for one pass without a state.",
        )
    return [shape for pair in layers for shape in pair]


def _probed(model: PreTrainedModel) -> list[list[tuple[int, int]] | None]:
    """The same by layer; None for one that did not run."""
    with itself(model, "two tokens"):
        result = model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True, return_dict=True)
    cache = cache_of(result)
    if cache is None or not all(hasattr(layer, "keys") for layer in getattr(cache, "layers", [None])):
        raise CaptureError(
            f"{type(model).__name__} keeps a state that is not a key-value cache ({type(cache).__name__})",
            "Give --task feature-extraction for one pass without a state.",
        )
    layers: list[Any] = cache.layers
    return [None if layer.keys is None else _shapes(model, layer) for layer in layers]


def _shapes(model: PreTrainedModel, layer: Any) -> list[tuple[int, int]]:
    """(heads, head_size) of a layer's keys and values; one that slides over two tokens has forgotten the first."""
    kept = 1 if getattr(layer, "sliding_window", None) == 2 else 2
    shapes = []
    for tensor in (layer.keys, layer.values):
        if tensor.ndim != 4 or tensor.shape[0] != 1 or tensor.shape[2] != kept:
            raise CaptureError(
                f"{type(model).__name__} caches keys of shape {tuple(tensor.shape)} for 1 row of 2 tokens, "
                "where (batch, heads, tokens, head_size) was expected"
            )
        shapes.append((tensor.shape[1], tensor.shape[3]))
    return shapes
