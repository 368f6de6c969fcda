"""What a kind of model does and needs, found from its class and config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trueport.cache_names import cache_name
from trueport.roles import decoder, encoder, seq2seq
from trueport.roles.component import Component, signature

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = ["Component", "components", "role_of"]


def role_of(model: PreTrainedModel) -> str:
    """``seq2seq``, ``decoder`` or ``encoder``, from what the class's forward takes and whether it generates."""
    names = signature(model)
    if "decoder_input_ids" in names and model.can_generate():
        return "seq2seq"
    if model.can_generate() and cache_name(model) is not None:
        return "decoder"
    return "encoder"


def components(model: PreTrainedModel, *, untrained: tuple[str, ...] = ()) -> list[Component]:
    """The graphs that the model's role needs."""
    role = role_of(model)
    if role == "seq2seq":
        return seq2seq.components(model)
    if role == "decoder":
        return decoder.components(model)
    return encoder.components(model, untrained=untrained)
