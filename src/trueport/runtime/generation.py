"""Decoders and encoder-decoders under transformers' own ``generate``."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast, Seq2SeqLMOutput
from transformers.utils import logging

from trueport.cache_names import field_name, pop_cache
from trueport.errors import RunError
from trueport.runtime.cache import RuntimeCache
from trueport.runtime.model import Component, TrueportModel, main_of, with_signature
from trueport.runtime.options import check_guidance, check_options

logger = logging.get_logger(__name__)

CACHE = field_name(CausalLMOutputWithPast)
"""The name by which the installed transformers' outputs hold a cache, and by which its ``generate`` hands it on."""


class GenerativeModel(TrueportModel, GenerationMixin):
    """What decoders and encoder-decoders share: ``GenerationMixin`` over a cache that the runtime holds."""

    base_model_prefix = ""
    _auto_class = None

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        """transformers' own ``generate`` for the original's class, with all that it takes."""
        if (cache := pop_cache(kwargs)) is not None:
            kwargs[CACHE] = cache
        return super(TrueportModel, self).generate(*args, **kwargs)  # type: ignore[misc]  # typed for PreTrainedModel

    def can_generate(self) -> bool:
        """Whether ``generate`` works."""
        return True

    def generate_batch(self, *args: Any, **kwargs: Any) -> Any:
        """Batching within the model needs its layers."""
        raise RunError(
            "generate_batch batches requests within the model, which an artefact does not", "Call generate()."
        )

    @property
    def _is_stateful(self) -> bool:
        """Whether a step cannot be undone, as transformers asks before it lets another model propose tokens."""
        return not self.new_cache().is_croppable

    def new_cache(self) -> RuntimeCache:
        """An empty cache, to pass as ``cache`` or, as transformers before 5.24 calls it, ``past_key_values``."""
        return RuntimeCache(self.main.session)

    @classmethod
    def is_remote_code(cls) -> bool:
        """Nothing of the model's own code runs."""
        return False

    def get_experts_implementation(self) -> dict[str, str]:
        """The graph is what it is: there is no implementation to switch."""
        return {}

    def get_input_embeddings(self) -> None:
        """The graph keeps its embeddings to itself."""

    def get_output_embeddings(self) -> NoReturn:
        """The graph keeps its head to itself, and transformers asks for it to cut it down to another vocabulary."""
        raise RunError(
            "An artefact's output embeddings are within its graph, so it cannot sample for a model of another tokenizer",
            "As its assistant_model it proposes with do_sample=False alone.",
        )

    def _prepare_generation_config(self, *args: Any, **kwargs: Any) -> tuple[GenerationConfig, dict[str, Any]]:
        """The options of one call: what it is given, then the folder's own, then transformers' defaults."""
        config, rest = super()._prepare_generation_config(*args, **kwargs)  # type: ignore[misc]
        check_options(config)
        return config, rest

    def _get_logits_processor(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """transformers' own, once it is certain that guidance, which calls the model, can be had."""
        if generation_config.guidance_scale not in (None, 1):
            check_guidance(self, kwargs.get("negative_prompt_attention_mask"))
        return super()._get_logits_processor(generation_config, *args, **kwargs)  # type: ignore[misc]

    def _prepare_cache_for_generation(  # type: ignore[override]  # transformers declares bool and returns None
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> None:
        """Put an empty RuntimeCache where transformers would put a DynamicCache."""
        cache = model_kwargs.get(CACHE)
        kind = generation_config.cache_implementation
        if cache is not None:
            self._own(cache)
            if kind is not None:
                raise RunError(f"cache_implementation={kind!r} is given beside a cache", "Leave one of them out.")
            cache._is_user_defined = True
        elif generation_config.use_cache is not False:
            if kind not in (None, "dynamic"):
                logger.warning_once(f"cache_implementation={kind!r} is ignored: the runtime keeps the cache")
            model_kwargs[CACHE] = self.new_cache()

    def _own(self, cache: Any) -> RuntimeCache:
        if not isinstance(cache, RuntimeCache) or cache.session is not self.main.session:
            kind = type(cache).__name__
            raise RunError(f"The cache given is a {kind} that is not this model's", "Begin with model.new_cache().")
        return cache

    def _decode(
        self, inputs: dict[str, Any], cache: Any, use_cache: bool | None, encoded: Any = None
    ) -> tuple[torch.Tensor, Any]:
        """Logits (batch, new, vocabulary), and the grown cache where one is wanted."""
        cache = None if cache is None else self._own(cache)
        outputs, state = self.main.run(inputs, None if cache is None else cache.state, encoded)
        if cache is None and use_cache is not False:
            cache = self.new_cache()
        if cache is not None:
            cache.state = state
        return outputs["logits"], cache


class DecoderModel(GenerativeModel):
    """A causal language model.

    Attributes:
        reread_past: the number of tokens past which ``generate`` drops a cache of no more; None where it keeps every one.
        types_are_tokens: whether the original looks ``token_type_ids`` up among its tokens, so that zeros say something.
        counts_tokens: whether the original counts positions otherwise where it is given none than ``generate`` gives them.
    """

    reread_past: int | None = None
    types_are_tokens: bool = False
    counts_tokens: bool = False

    @functools.wraps(GenerationMixin.prepare_inputs_for_generation)  # generate reads from its signature what it takes
    def prepare_inputs_for_generation(  # type: ignore[override]
        self, input_ids: torch.Tensor, *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        """One step's inputs, as transformers' models prepare them; those that read all anew past a limit do so here."""
        cache, limit = kwargs.get(CACHE), self.reread_past
        if limit is not None and cache is not None and 0 < cache.get_seq_length() <= limit < input_ids.shape[1]:
            kwargs |= {CACHE: None, "next_sequence_length": None}
        prepare: Any = GenerationMixin.prepare_inputs_for_generation  # typed for PreTrainedModel
        return dict(prepare(self, input_ids, *args, **kwargs))

    def _signature(self) -> list[str]:
        return [*super()._signature(), CACHE, "use_cache"]

    def _forward(self, inputs: dict[str, Any], return_dict: bool) -> Any:
        if self.types_are_tokens and "token_type_ids" in inputs:
            raise RunError(
                f"{self.main.feeder.name} takes no token_type_ids, and zeros are tokens here", "Leave them out."
            )
        asked = self.main.session.interface.has_input("position_ids") and inputs.get("position_ids") is None
        if self.counts_tokens and asked:
            raise RunError(
                f"Without position_ids a {type(self).__name__} counts from behind its padding's id on, and generate from 0",
                "Give position_ids, or call generate().",
            )
        logits, cache = self._decode(inputs, pop_cache(inputs), inputs.pop("use_cache", None))
        result = CausalLMOutputWithPast(logits=logits, **{CACHE: cache})
        return result if return_dict else result.to_tuple()


class Encoder:
    """The encoder of an encoder-decoder, as ``get_encoder`` gives it to transformers."""

    def __init__(self, component: Component) -> None:
        self.component = component
        self.names = names = [tensor.name for tensor in component.session.interface.plain_inputs]
        self.main_input_name = main_of(names)
        self.forward = with_signature(self._forward, names)

    def __call__(self, *args: Any, **kwargs: Any) -> BaseModelOutput:
        """Sources to ``last_hidden_state``, (batch, source, hidden); a missing ``attention_mask`` is all ones."""
        return self.forward(*args, **kwargs)

    def _forward(self, inputs: dict[str, Any], return_dict: bool) -> Any:
        if self.main_input_name != "input_ids" and not self.component.feeder.interface.has_input("attention_mask"):
            inputs.pop("attention_mask", None)  # of features: their encoder reads every frame, padded or not
        outputs, _ = self.component.run(inputs)
        result = BaseModelOutput(last_hidden_state=outputs["last_hidden_state"])
        for name, tensor in outputs.items():  # a decoder may begin with the keys and values that its encoder projects
            if name not in result:
                result[name] = tensor
        return result if return_dict else result.to_tuple()


class Seq2SeqModel(GenerativeModel):
    """An encoder-decoder."""

    def __init__(self, folder: Path, *args: Any, **kwargs: Any) -> None:
        super().__init__(folder, *args, **kwargs)
        self.encoder = Encoder(self.components["encoder"])
        self.main_input_name = self.encoder.main_input_name
        self._masked = self.main.session.interface.has_input("encoder_attention_mask")

    def get_encoder(self, modality: str | None = None) -> Encoder:
        """The encoder."""
        return self.encoder

    def _signature(self) -> list[str]:
        names = [tensor.name for tensor in self.components["encoder"].session.interface.plain_inputs]
        if "attention_mask" not in names:
            names.append("attention_mask")
        names += ["decoder_input_ids", "decoder_attention_mask", "encoder_outputs", CACHE, "use_cache"]
        return names

    def _forward(self, inputs: dict[str, Any], return_dict: bool) -> Any:
        cache, use_cache = pop_cache(inputs), inputs.pop("use_cache", None)
        feeds = {"input_ids": inputs.pop("decoder_input_ids", None)}
        if feeds["input_ids"] is None:
            raise RunError(f"{self.folder.name} needs decoder_input_ids", "Give them, or call generate().")
        mask = inputs.pop("decoder_attention_mask", None)
        if mask is not None and not bool((mask == 1).all()):
            raise RunError(f"{self.main.feeder.name} takes no decoder_attention_mask", "Give targets without padding.")
        encoded = inputs.pop("encoder_outputs", None)
        mask = inputs.get("attention_mask")
        if encoded is None:
            encoded = self.encoder(**inputs)
        elif unread := [name for name in inputs if name not in {*self.encoder.names, "attention_mask"}]:
            raise RunError(f"{self.folder.name} takes no {unread[0]}", "Leave it out.")
        states = encoded[0]
        if self.main.session.interface.has_input("encoder_hidden_states"):
            feeds["encoder_hidden_states"] = states
        if self._masked:
            feeds["encoder_attention_mask"] = torch.ones(states.shape[:2], dtype=torch.long) if mask is None else mask
        elif self.main_input_name == "input_ids":
            feeds["attention_mask"] = mask
        given = encoded if isinstance(encoded, Mapping) else None
        logits, cache = self._decode(feeds, cache, use_cache, given)
        result = Seq2SeqLMOutput(logits=logits, encoder_last_hidden_state=states, **{CACHE: cache})
        return result if return_dict else result.to_tuple()
