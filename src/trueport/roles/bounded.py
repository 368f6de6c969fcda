"""Components for runtimes that plan their memory ahead: every dimension bounded, the cache kept inside the program."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import nn

from trueport.cache_names import cache_of, given_cache
from trueport.errors import CaptureError
from trueport.interface import BATCH, PAST_SOURCE, SOURCE, Dimension, Interface, StatePair, Tensor
from trueport.roles import decoder, encoder, seq2seq
from trueport.roles.caches import cache_tensors, given_cross_cache, graph_cross_cache
from trueport.roles.component import Component, trace_sizes
from trueport.roles.kept import Kept, pairs_of
from trueport.roles.layers import Slot

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Bounds:
    """The largest sizes that a program serves: rows of a batch, and tokens of a sequence, past and new together."""

    batch: int = 8
    length: int = 512


class KeptDecoderModule(nn.Module):
    """The whole model's forward over a cache in the program's own buffers; the mask's length tells the past.

    Where no layer keeps tokens, the model's mask is that of the new ones (``DecoderModule``).
    """

    def __init__(self, model: nn.Module, kept: tuple[Tensor, ...], layers: list[list[Slot]]) -> None:
        super().__init__()
        self.model = model
        self.kept = Kept(self, kept, layers)
        self.forgets = not any(slot.grows for slot in self.kept.slots)

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to ``logits``."""
        batch, new = inputs["input_ids"].shape
        past = inputs["attention_mask"].shape[1] - new
        cache = self.kept.cache(self, batch, past, new)
        if self.forgets:
            inputs["attention_mask"] = inputs["attention_mask"][:, -new:]
        inputs |= given_cache(self.model, cache)
        result = self.model(**inputs, use_cache=True, return_dict=True)
        self.kept.keep(self, cache_of(result), batch)
        return {"logits": result.logits}


class ProjectingEncoderModule(nn.Module):
    """The model's own encoder, and the cross-attention keys and values that its decoder makes of the states.

    The decoder runs over one token; of that run only the projections are given out, so nothing else is exported.
    """

    def __init__(self, model: nn.Module, encoder: nn.Module, cross: tuple[Tensor, ...]) -> None:
        super().__init__()
        self.model, self.encoder, self.cross = model, encoder, cross

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to ``last_hidden_state`` and each layer's cross keys and values."""
        encoded = self.encoder(**inputs, return_dict=True)
        states = encoded.last_hidden_state
        batch = states.shape[0]
        empty = [states.new_zeros(batch, t.shape[1], 0, t.shape[3]) for t in self.cross]  # type: ignore[arg-type]
        cache = graph_cross_cache(empty, empty)
        mask = {"attention_mask": inputs["attention_mask"]} if "attention_mask" in inputs else {}
        self.model(
            encoder_outputs=type(encoded)(last_hidden_state=states),
            decoder_input_ids=torch.zeros(batch, 1, dtype=torch.long),
            **given_cache(self.model, cache),
            use_cache=True,
            return_dict=True,
            **mask,
        )
        projected = cache_tensors(cache.cross_attention_cache)
        named = {tensor.name: value for tensor, value in zip(self.cross, projected, strict=True)}
        return {"last_hidden_state": states} | named


class KeptSeq2SeqDecoderModule(nn.Module):
    """The whole model's forward from the projected states on, its own cache in the program's buffers.

    ``encoded`` is the class of what its encoder returns, ``width`` that of the states.
    """

    def __init__(
        self, model: nn.Module, encoded: type, kept: tuple[Tensor, ...], cross: tuple[StatePair, ...], width: int
    ) -> None:
        super().__init__()
        self.model, self.encoded, self.cross, self.width = model, encoded, cross, width
        self.kept = Kept(self, kept, pairs_of(kept))

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to ``logits``."""
        ids, own_mask = inputs["input_ids"], inputs["decoder_attention_mask"]
        cross = [inputs[pair.input] for pair in self.cross]
        batch, new = ids.shape
        past = own_mask.shape[1] - new
        own = self.kept.cache(self, batch, past, new)
        # Only their shape is read: the keys and values made of them are given.
        states = cross[0].new_zeros(batch, cross[0].shape[2], self.width)
        mask = {"attention_mask": inputs["encoder_attention_mask"]} if "encoder_attention_mask" in inputs else {}
        result = self.model(
            encoder_outputs=self.encoded(last_hidden_state=states),
            decoder_input_ids=ids,
            decoder_attention_mask=own_mask,
            **given_cache(self.model, given_cross_cache(own, cross)),
            use_cache=True,
            return_dict=True,
            **mask,
        )
        return {"logits": result.logits}


def components(model: PreTrainedModel, bounds: Bounds, *, untrained: tuple[str, ...] = ()) -> list[Component]:
    """The programs that the model's role needs."""
    from trueport.roles import role_of

    role = role_of(model)
    if role == "seq2seq":
        return _seq2seq(model, bounds)
    if role == "decoder":
        return [_decoder(model, bounds)]
    return [_encoder(component, bounds) for component in encoder.components(model, untrained=untrained)]


def bounded(component: Component, bounds: Bounds) -> Component:
    """Any component within bounds: its state stays an input and an output, which the session carries.

    The sample is cut down where it is larger than the bounds.
    """
    interface = _bounded(component.interface, bounds)
    limits = {dimension.name: dimension.maximum for dimension in interface.dimensions}
    sizes = {name: min(size, limits.get(name) or size) for name, size in component.sizes.items()}
    feeds = component.feeds
    if feeds is not None:
        feeds = {
            tensor.name: feeds[tensor.name][tuple(slice(length) for length in tensor.concrete(sizes))].contiguous()
            for tensor in component.interface.inputs
        }
    return replace(component, interface=interface, sizes=sizes, feeds=feeds, bounded=True, stem="forward")


def _encoder(component: Component, bounds: Bounds) -> Component:
    traced = component.sizes.get("sequence_length", 0)
    if component.interface.has_input("input_values") and bounds.length <= traced:
        raise CaptureError(
            f"The model reads samples of sound, and --max-length (max_length) allows {bounds.length}, where it is traced "
            f"over {traced}",
            "Give it in samples: 160000 are ten seconds at 16 kHz.",
        )
    interface = _bounded(component.interface, bounds)
    return replace(component, interface=interface, bounded=True, stem="forward")


def _decoder(model: PreTrainedModel, bounds: Bounds) -> Component:
    (part,) = decoder.components(model)
    assert isinstance(part.module, decoder.DecoderModule)
    if not part.interface.has_input("attention_mask"):
        raise CaptureError(
            f"{type(model).__name__} takes no attention_mask, whose length tells a program the past",
            "Give --to onnx, or --task feature-extraction for one pass without a state.",
        )
    whole = _bounded(part.interface, bounds)
    kept = _kept([whole.input(pair.input) for pair in whole.state], bounds, whole.largest("past_sequence_length") + 1)
    interface = Interface(whole.plain_inputs, whole.plain_outputs, whole.dimensions, kept=kept)
    module = KeptDecoderModule(model, kept, part.module.layers)
    return Component("model", "forward", module, interface, trace_sizes(interface), bounded=True)


def _seq2seq(model: PreTrainedModel, bounds: Bounds) -> list[Component]:
    first, second = seq2seq.components(model)
    whole = _bounded(second.interface, bounds)
    # A source of one length is as long as it is, whatever bounds what the decoder says to it.
    fixed = seq2seq.fixed_source(model)
    source: int | str = SOURCE if fixed is None else fixed
    crossing = [pair for pair in whole.state if ".encoder." in pair.input]
    given = tuple(Tensor(p.input, t.dtype, (t.shape[0], t.shape[1], source, t.shape[3]))
                  for p in crossing for t in [whole.input(p.input)])  # fmt: skip
    projected = tuple(replace(tensor, name=pair.output) for tensor, pair in zip(given, crossing, strict=True))
    reading = first.interface.with_outputs((*first.interface.outputs, *projected))
    reading = _bounded(reading, bounds)
    width = whole.input("encoder_hidden_states").shape[2]
    assert isinstance(width, int)
    encoding = replace(
        first,
        stem="encoder",
        module=ProjectingEncoderModule(model, model.get_encoder(), projected),
        interface=reading,
        bounded=True,
    )
    own = [whole.input(pair.input) for pair in whole.state if pair not in crossing]
    kept = _kept(own, bounds, whole.largest("past_sequence_length") + 1)
    ids = whole.input("input_ids")
    inputs = [
        ids,
        Tensor("decoder_attention_mask", "int64", (ids.shape[0], "past_sequence_length + sequence_length")),
        *(tensor for tensor in whole.plain_inputs if tensor.name == "encoder_attention_mask"),
        *given,
    ]
    left_out = (PAST_SOURCE,) if fixed is None else (PAST_SOURCE, SOURCE)
    dimensions = tuple(d for d in whole.dimensions if d.name not in left_out)
    pairs = tuple(StatePair(pair.input, pair.output, 2, initial="encoder") for pair in crossing)
    interface = Interface(tuple(inputs), whole.plain_outputs, dimensions, pairs, kept)
    assert isinstance(second.module, seq2seq.Seq2SeqDecoderModule)
    module = KeptSeq2SeqDecoderModule(model, second.module.encoded, kept, pairs, width)
    decoding = Component("decoder", "decoder", module, interface, second.sizes, bounded=True)
    return [encoding, decoding]


def _kept(tensors: list[Tensor], bounds: Bounds, length: int) -> tuple[Tensor, ...]:
    """Buffers of all rows, and as long as a sequence gets where they grow."""
    return tuple(
        replace(t, shape=(bounds.batch, *(length if isinstance(axis, str) else axis for axis in t.shape[1:])))
        for t in tensors
    )


def _bounded(interface: Interface, bounds: Bounds) -> Interface:
    """Every dimension with a maximum: the smaller of the model's own and the user's."""

    def limit(dimension: Dimension) -> Dimension:
        if dimension.name in (BATCH, interface.rows):
            return replace(dimension, maximum=bounds.batch, because="--max-batch")
        asked = bounds.length - 1 if dimension.name == "past_sequence_length" else bounds.length
        if dimension.maximum is not None and dimension.maximum <= asked:
            return dimension
        return replace(dimension, maximum=asked, because="--max-length")

    dimensions = tuple(limit(dimension) for dimension in interface.dimensions)
    # torch.export takes no dynamic axis of 1 at the most: such an axis is the constant.
    single = {d.name for d in dimensions if d.maximum == 1 and d.minimum == 1}

    def fixed(tensor: Tensor) -> Tensor:
        return replace(tensor, shape=tuple(1 if axis in single else axis for axis in tensor.shape))

    return replace(
        interface,
        inputs=tuple(map(fixed, interface.inputs)),
        outputs=tuple(map(fixed, interface.outputs)),
        dimensions=dimensions,
    )
