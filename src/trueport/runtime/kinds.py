"""The class of a loaded model: one of three, by the name of the original's, and with what that brings for generation."""

from __future__ import annotations

import functools
import sys
from types import SimpleNamespace
from typing import Any

from torch import nn
from transformers import GenerationMixin, PreTrainedConfig

from trueport.cache_names import NAMES
from trueport.errors import RunError
from trueport.roles.component import signature
from trueport.runtime.generation import GenerativeModel
from trueport.runtime.model import TrueportModel
from trueport.tasks import class_named

COUNTING = "create_position_ids_from_input_ids"
"""What transformers' embeddings call the method that does so."""


def like_original(kind: type[TrueportModel], config: PreTrainedConfig) -> type[TrueportModel]:
    """``kind`` under the original's name, by which transformers' pipelines ask what a model can do.

    A class may inherit a ``generate`` of its own around transformers' loop: Whisper's cuts audio into segments, chooses
    language and task, and gives back tokens without those that it began with. It comes along. Code that came with a
    checkpoint does not: only transformers' own classes are asked.
    """
    name = (config.architectures or [kind.__name__])[0]
    return _named(kind, name, typed=hasattr(config, "type_vocab_size"))  # type: ignore[arg-type]  # a class has a hash


@functools.cache  # two models of one kind are of one class
def _named(kind: type[TrueportModel], name: str, *, typed: bool) -> type[TrueportModel]:
    original = class_named(name) if issubclass(kind, GenerativeModel) else None
    loops = [base for base in original.__mro__ if issubclass(base, GenerationMixin)] if original is not None else []
    own = next((base for base in loops if not issubclass(base, nn.Module)), GenerationMixin)
    bases = (kind,) if own is GenerationMixin else (_Segmented, kind, own)
    types_are_tokens = original is not None and "token_type_ids" in signature(original) and not typed
    told = {
        "__module__": kind.__module__, "__doc__": kind.__doc__, "types_are_tokens": types_are_tokens,
        "counts_tokens": original is not None and _counts_tokens(original),
    }  # fmt: skip
    return type(name, bases, told)


def _counts_tokens(original: type) -> bool:
    """Whether a class counts positions by its tokens where it is given none, from behind the padding's on, as RoBERTa."""
    return any(hasattr(part, COUNTING) for part in vars(sys.modules[original.__module__]).values())


class _Segmented:
    """What such a ``generate`` reads of its model besides its forward."""

    @property
    def model(self: Any) -> SimpleNamespace:
        """The strides of the encoder, whose product is how many frames become one state."""
        frames = self.encoder.component.session.interface.plain_inputs[0].shape[-1]
        first, second = (SimpleNamespace(stride=(n,)) for n in (frames // self.config.max_source_positions, 1))
        return SimpleNamespace(encoder=SimpleNamespace(conv1=first, conv2=second), config=self.config)

    def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
        """The original's own, but for what it reads from attention."""
        if kwargs.get("return_token_timestamps"):
            raise RunError(
                "return_token_timestamps reads the attention of layers, which the artefact's graph does not give out",
                "Leave it out: return_timestamps=True gives the times of phrases.",
            )
        return super().generate(*args, **kwargs)  # type: ignore[misc]

    def _postprocess_outputs(self: Any, seek_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        """Each row's share of a result, less the cache: the runtime keeps that for all rows."""
        if hasattr(seek_outputs, "items"):
            seek_outputs = type(seek_outputs)(**{n: value for n, value in seek_outputs.items() if n not in NAMES})
        return super()._postprocess_outputs(seek_outputs, *args, **kwargs)  # type: ignore[misc]
