"""What transformers' ``generate`` can be asked for and an artefact cannot do, each refused by its name."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import GenerationConfig

from trueport.errors import RunError

if TYPE_CHECKING:
    from trueport.runtime.generation import GenerativeModel

INSIDE = ("assistant_early_exit", "use_mtp", "speculation_type")
"""Options that run some of the original's modules by themselves."""


def check_options(config: GenerationConfig) -> None:
    """Refuse what needs the original's own modules.

    Raises:
        RunError: such an option is given, to ``generate`` or by the folder's generation_config.json.
    """
    for name in INSIDE:
        if value := getattr(config, name, None):
            raise RunError(f"{name}={value!r} runs parts of a model, and an artefact runs whole", f"Leave {name} out.")
    if config.cache_implementation == "paged":
        raise RunError(
            "cache_implementation='paged' batches requests within the model, which an artefact does not",
            "Leave cache_implementation out.",
        )


def check_guidance(model: GenerativeModel, mask: torch.Tensor | None) -> None:
    """Refuse guidance by a prompt that transformers would have the original read otherwise than the artefact reads it.

    Args:
        mask: ``negative_prompt_attention_mask``, (batch, tokens); None where every token counts.

    Raises:
        RunError: the model has an encoder, or the prompt is padded and the model's positions are absolute.
    """
    if model.config.is_encoder_decoder:
        raise RunError(
            "guidance_scale has transformers call the model on targets alone, and an encoder-decoder needs a source",
            "Leave guidance_scale out.",
        )
    if mask is not None and not bool((mask != 0).all()) and _has_absolute_positions(model):
        # Without position_ids GPT-2 counts padding and OPT does not; elsewhere generate tells both what they are.
        raise RunError(
            "negative_prompt_attention_mask hides tokens, and transformers does not tell the positions of the others",
            "Give negative_prompt_ids of one length without padding, or one prompt at a time.",
        )


def _has_absolute_positions(model: GenerativeModel) -> bool:
    """Whether two tokens give other logits one position further on; rotations know differences alone."""
    if not model.main.session.interface.has_input("position_ids"):
        return False
    ids = torch.tensor([[1, 2]])
    here, there = (model(input_ids=ids, position_ids=torch.tensor([[n, n + 1]])).logits for n in (0, 1))
    return not torch.allclose(here, there, rtol=1e-3, atol=1e-3 * float(here.abs().max()))
