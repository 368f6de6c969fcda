"""Replacements for CANINE: local attention over all chunks at once, and a mask pooled by reshaping.

CANINE downsamples by a convolution, so its own shortest input is ``config.downsampling_rate`` characters (4). It must
be traced past ``config.local_transformer_stride``: one chunk, or one molecule, is a size that torch.export fixes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from trueport.patches.patch import Patch

CANINE = "transformers.models.canine.modeling_canine"


def _local_attention(original: Callable[..., Any]) -> Callable[..., Any]:
    """The loop over chunks as one batch of equal chunks; what fills up the last one is out of every query's reach."""

    def forward(
        self: Any, hidden_states: torch.Tensor, attention_mask: torch.Tensor, output_attentions: bool = False
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
        bias = (1.0 - mask.to(hidden_states.dtype)) * torch.finfo(hidden_states.dtype).min
        bias = bias.masked_fill(missing, -torch.inf).reshape(batch * chunks, 1, width, width)
        blocks = functional.pad(hidden_states, (0, 0, 0, chunks * width - length)).reshape(-1, width, size)
        context = self.self(blocks, blocks, bias)[0].reshape(batch, chunks * width, size)[:, :length]
        return (self.output(context, hidden_states),)

    return forward


def _downsample_mask(original: Callable[..., Any]) -> Callable[..., Any]:
    """``_downsample_attention_mask`` by reshaping: ``MaxPool1d`` fixes the length that it is traced at."""

    def downsample(self: Any, char_attention_mask: torch.Tensor, downsampling_rate: int) -> torch.Tensor:
        molecules = char_attention_mask.shape[1] // downsampling_rate
        whole = char_attention_mask[:, : molecules * downsampling_rate].float()
        return whole.reshape(-1, molecules, downsampling_rate).amax(-1)

    return downsample


def _layer_samples() -> list[tuple[Any, ...]]:
    """A local layer over whole and broken chunks, one of them all padding."""
    from transformers import CanineConfig
    from transformers.models.canine.modeling_canine import CanineAttention

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CanineConfig(hidden_size=8, num_attention_heads=2)
        layer = CanineAttention(config, True, False, False, 4, 4, 4, 4).eval()
        samples = []
        for length in (1, 3, 4, 9, 16):
            mask = (torch.rand(2, 1, length) > 0.3).float().expand(-1, length, -1).clone()
            mask[0, :, 4:8] = 0
            samples.append((layer, torch.randn(2, length, 8), mask))
    return samples


def _mask_samples() -> list[tuple[Any, ...]]:
    """Masks of lengths that the rate divides and does not; the method does not read its module."""
    generator = torch.Generator().manual_seed(0)
    return [(None, torch.randint(2, (2, length), generator=generator), 4) for length in (4, 7, 16, 18)]


ISSUE = "https://github.com/huggingface/transformers/issues/47491"

PATCHES: tuple[Patch, ...] = (
    Patch(
        f"{CANINE}.CanineAttention.forward",
        symptom="a Python loop over chunks fixes the sequence length in the graph",
        upstream=f"{ISSUE}; `for chunk_start in range(from_start, from_seq_length, ...)`",
        replacement=_local_attention,
        samples=_layer_samples,
        needed_by=CANINE,
        versions=">=5.23",
        model="canine",
    ),
    Patch(
        f"{CANINE}.CanineModel._downsample_attention_mask",
        symptom="MaxPool1d fixes the sequence length in the graph",
        upstream=f"{ISSUE}; `torch.nn.MaxPool1d(...)(poolable_char_mask.float())`",
        replacement=_downsample_mask,
        samples=_mask_samples,
        needed_by=CANINE,
        versions=">=5.23",
        model="canine",
    ),
)
