"""Replacements for CANINE: local attention over blocks at once, and molecules repeated by position.

CANINE downsamples by a convolution, so its own shortest input is ``config.downsampling_rate`` characters (4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from trueport.patches.registry import Patch

CANINE = "transformers.models.canine.modeling_canine"


def _local_attention(original: Callable[..., Any]) -> Callable[..., Any]:
    """The loop over chunks as one batch of equal chunks; what fills up the last one is out of every query's reach."""

    def forward(
        self: nn.Module, hidden_states: torch.Tensor, attention_mask: torch.Tensor, output_attentions: bool = False
    ) -> tuple[torch.Tensor, ...]:
        width = self.attend_to_chunk_width
        sizes = {width, self.attend_to_chunk_stride, self.attend_from_chunk_width, self.attend_from_chunk_stride}
        first = self.always_attend_to_first_position or self.first_position_attends_to_all
        if not self.local or first or len(sizes) > 1 or output_attentions:
            return original(self, hidden_states, attention_mask, output_attentions)
        batch, length, size = hidden_states.shape
        chunks = (length + width - 1) // width
        position = torch.arange(chunks * width, device=hidden_states.device)
        keys = (position // width * width)[:, None] + torch.arange(width, device=hidden_states.device)
        missing = keys >= length
        # Each query's keys, (batch, positions, width); the rows that fill up the last chunk copy the last query's.
        mask = attention_mask.index_select(1, position.clamp(max=length - 1))
        mask = mask.gather(2, keys.clamp(max=length - 1).expand(batch, -1, -1))
        # Where a chunk is all padding the original attends to all of it evenly, and never beyond the sequence: masked
        # keys keep the original's finite penalty, missing ones are infinitely far.
        bias = (1.0 - mask.float()) * torch.finfo(hidden_states.dtype).min
        bias = bias.masked_fill(missing, -torch.inf).reshape(batch * chunks, 1, width, width)
        blocks = functional.pad(hidden_states, (0, 0, 0, chunks * width - length)).reshape(-1, width, size)
        context = self.self(blocks, blocks, bias)[0].reshape(batch, chunks * width, size)[:, :length]
        return (self.output(context, hidden_states),)

    return forward


def _downsample_mask(original: Callable[..., Any]) -> Callable[..., Any]:
    """``_downsample_attention_mask`` by reshaping: ``MaxPool1d`` fixes the length that it is traced at."""

    def downsample(self: nn.Module, char_attention_mask: torch.Tensor, downsampling_rate: int) -> torch.Tensor:
        molecules = char_attention_mask.shape[1] // downsampling_rate
        whole = char_attention_mask[:, : molecules * downsampling_rate].float()
        return whole.reshape(-1, molecules, downsampling_rate).amax(-1)

    return downsample


def _repeat_molecules(original: Callable[..., Any]) -> Callable[..., Any]:
    """``_repeat_molecules`` by each character's molecule; the original repeats the last by ``length % rate``."""

    def repeat(self: nn.Module, molecules: torch.Tensor, char_seq_length: int) -> torch.Tensor:
        # Molecule 0 is [CLS]; characters past the last molecule share it.
        character = torch.arange(char_seq_length, device=molecules.device)
        index = character // self.config.downsampling_rate + 1
        return molecules.index_select(1, index.clamp(max=molecules.shape[1] - 1))

    return repeat


PATCHES: tuple[Patch, ...] = (
    Patch(f"{CANINE}.CanineAttention.forward", "s", "u", _local_attention, list, CANINE),
    Patch(f"{CANINE}.CanineModel._downsample_attention_mask", "s", "u", _downsample_mask, list, CANINE),
    Patch(f"{CANINE}.CanineModel._repeat_molecules", "s", "u", _repeat_molecules, list, CANINE),
)
