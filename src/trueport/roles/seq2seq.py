"""Encoder-decoder models: an encoder, and one decoder without ``If`` for every step."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trueport.cache_names import cache_of, given_cache
from trueport.errors import CaptureError
from trueport.interface import Dimension, Interface, StatePair, Tensor
from trueport.roles.caches import cache_tensors, graph_cross_cache
from trueport.roles.component import (
    Component,
    features_input,
    float_dtype,
    image_input,
    position_bound,
    signature,
    text_inputs,
    trace_sizes,
)
from trueport.roles.encoder import trace_length
from trueport.roles.probing import itself

if TYPE_CHECKING:
    from transformers import PreTrainedModel


MASK = "encoder_attention_mask"


class Seq2SeqEncoderModule(nn.Module):
    """The model's own encoder."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to ``last_hidden_state``, (batch, encoder_sequence, hidden)."""
        return {"last_hidden_state": self.encoder(**inputs, return_dict=True).last_hidden_state}


class Seq2SeqDecoderModule(nn.Module):
    """The whole model's forward from the encoder's states on.

    The cross cache holds the keys of the first ``past_encoder_sequence_length`` states; the rest is projected and
    appended: everything at the first step, a slice of length 0 afterwards, which costs nothing.

    ``encoded`` is the class of what the model's own encoder returns: a decoder may read more of it than the states.
    """

    def __init__(
        self, model: nn.Module, encoded: type, own: tuple[StatePair, ...], cross: tuple[StatePair, ...]
    ) -> None:
        super().__init__()
        self.model = model
        self.encoded = encoded
        self.own = own
        self.cross = cross

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to ``logits`` and both grown caches."""
        own = [inputs[pair.input] for pair in self.own]
        cross = [inputs[pair.input] for pair in self.cross]
        # GPT-2's projection views them, which a slice that may be of any length does not allow.
        states = inputs["encoder_hidden_states"][:, cross[0].shape[2] :].contiguous()
        mask = {"attention_mask": inputs[MASK]} if MASK in inputs else {}
        with _every_state(self.model, inputs["encoder_hidden_states"]):
            result = self.model(
                encoder_outputs=self.encoded(last_hidden_state=states),
                decoder_input_ids=inputs["input_ids"],
                **given_cache(self.model, graph_cross_cache(own, cross)),
                use_cache=True,
                return_dict=True,
                **mask,
            )
        cache = cache_of(result)
        outputs = {"logits": result.logits}
        for pairs, part in ((self.own, cache.self_attention_cache), (self.cross, cache.cross_attention_cache)):
            outputs |= {pair.output: tensor for pair, tensor in zip(pairs, cache_tensors(part), strict=True)}
        return outputs


@contextmanager
def _every_state(model: nn.Module, states: torch.Tensor) -> Iterator[None]:
    """Within, a decoder that is given no mask of the encoder's states reads all of them, (batch, encoder_sequence, hidden).

    BERT and GPT-2 make a mask of ones for the states that they are given, and here these are the new ones alone.
    """
    decoder: nn.Module = model.get_decoder()  # type: ignore[operator]
    if MASK not in signature(decoder):
        yield
        return

    def masked(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        given = kwargs.get(MASK)
        return args, kwargs | {MASK: torch.ones(states.shape[:2], dtype=torch.long) if given is None else given}

    hook = decoder.register_forward_pre_hook(masked, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def components(model: PreTrainedModel) -> list[Component]:
    """Encoder and decoder, sharing the model's weights.

    Raises:
        CaptureError: one of them is a plain module, which says neither its config nor its inputs, as FSMT's.
    """
    for part in (model.get_encoder(), model.get_decoder()):
        if not hasattr(part, "config"):
            raise CaptureError(
                f"The {type(part).__name__} of a {type(model).__name__} is a plain module without a config",
                "This version cannot export it to generate.",
            )
    encoder = _encoder(model)
    return [encoder, _decoder(model, masked=encoder.interface.has_input("attention_mask"))]


def _encoder(model: PreTrainedModel) -> Component:
    encoder = model.get_encoder()
    names = signature(encoder)
    dtype = float_dtype(model)
    length = "encoder_sequence_length"
    states = Tensor("last_hidden_state", dtype, ())
    if encoder.main_input_name == "input_ids":
        bound, because = position_bound(encoder)
        inputs = text_inputs(model.config, names, length)
        dimensions = [Dimension("batch_size"), Dimension(length, 1, bound, because)]
    else:
        inputs = [_features(model, encoder.main_input_name)]
        dimensions = [Dimension("batch_size")]
    interface = Interface(tuple(inputs), (states,), tuple(dimensions))
    sizes = trace_sizes(interface, encoder_sequence_length=trace_length(model.config))
    return Component("encoder", "encoder_model", Seq2SeqEncoderModule(encoder), interface, sizes)


def _features(model: PreTrainedModel, name: str) -> Tensor:
    """Pixels of one size, or log-mel features of the one length that the encoder's position table serves.

    (batch, channels, height, width) or (batch, mels, frames).
    """
    if name == "pixel_values":
        return image_input(model.get_encoder())
    found = features_input(model)
    if found is None:
        raise CaptureError(
            f"The {type(model.get_encoder()).__name__} of a {type(model).__name__} takes features of any length",
            "This version exports speech encoders of one length, as Whisper's.",
        )
    return replace(found, name=name)


def fixed_source(model: PreTrainedModel) -> int | None:
    """How many states the encoder always gives; None where a source may have any length."""
    feeds = _source(model)
    if "input_ids" in feeds:
        return None
    with itself(model, "features"):
        return int(model.get_encoder()(**feeds, return_dict=True).last_hidden_state.shape[1])


def _decoder(model: PreTrainedModel, *, masked: bool) -> Component:
    dtype = float_dtype(model)
    probed = _probe(model)
    inputs = []
    if masked:
        inputs.append(Tensor(MASK, "int64", ("batch_size", "encoder_sequence_length")))
    inputs.append(Tensor("input_ids", "int64", ("batch_size", "sequence_length")))
    inputs.append(Tensor("encoder_hidden_states", dtype, ("batch_size", "encoder_sequence_length", probed.width)))
    outputs = [
        Tensor(
            "logits", dtype, ("batch_size", "sequence_length", model.config.get_text_config(decoder=True).vocab_size)
        )
    ]
    own, cross = list[StatePair](), list[StatePair]()
    kinds = (
        ("decoder", own, probed.own, "past_sequence_length", "past_sequence_length + sequence_length"),
        ("encoder", cross, probed.cross, "past_encoder_sequence_length", "encoder_sequence_length"),
    )
    for layer in range(len(probed.own) // 2):
        for kind, pairs, shapes, past, total in kinds:
            for offset, part in enumerate(("key", "value")):
                heads, size = shapes[2 * layer + offset]
                name = f"{layer}.{kind}.{part}"
                inputs.append(Tensor(f"past_key_values.{name}", dtype, ("batch_size", heads, past, size)))
                outputs.append(Tensor(f"present.{name}", dtype, ("batch_size", heads, total, size)))
                pairs.append(StatePair(f"past_key_values.{name}", f"present.{name}", axis=2))
    bound, because = position_bound(model.get_decoder())
    interface = Interface(
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        dimensions=(
            Dimension("batch_size"),
            Dimension("sequence_length", 1, bound, because),
            Dimension("past_sequence_length", 0, None if bound is None else bound - 1, because),
            Dimension("encoder_sequence_length"),
            Dimension("past_encoder_sequence_length", 0),
        ),
        state=tuple(pair for layer in zip(own[::2], own[1::2], cross[::2], cross[1::2], strict=True) for pair in layer),
    )
    module = Seq2SeqDecoderModule(model, probed.encoded, tuple(own), tuple(cross))
    return Component("decoder", "decoder_model_merged", module, interface, trace_sizes(interface))


@dataclass(frozen=True)
class _Probed:
    """What a run shows: (heads, head_size) of the self and cross caches, in turn, and the encoder's answer.

    ``width`` is that of its states, ``encoded`` its class.
    """

    own: list[tuple[int, int]]
    cross: list[tuple[int, int]]
    width: int
    encoded: type


def _source(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """One that the encoder takes: four tokens, or features of the one shape."""
    name = model.get_encoder().main_input_name
    if name == "input_ids":
        return {name: torch.zeros(1, 4, dtype=torch.long)}
    features = _features(model, name)
    return {name: torch.zeros(features.concrete({"batch_size": 1}), dtype=getattr(torch, features.dtype))}


def _probe(model: PreTrainedModel) -> _Probed:
    encoder, feeds = model.get_encoder(), _source(model)
    with itself(model, "four tokens and a target of two" if "input_ids" in feeds else "features and a target of two"):
        encoded = encoder(**feeds, return_dict=True)
        states = encoded.last_hidden_state
        result = model(
            encoder_outputs=type(encoded)(last_hidden_state=states),
            decoder_input_ids=torch.zeros(1, 2, dtype=torch.long),
            use_cache=True,
            return_dict=True,
        )
    cache = cache_of(result)
    own, cross = (
        [(tensor.shape[1], tensor.shape[3]) for tensor in cache_tensors(part)]
        for part in (cache.self_attention_cache, cache.cross_attention_cache)
    )
    return _Probed(own, cross, states.shape[-1], type(encoded))
