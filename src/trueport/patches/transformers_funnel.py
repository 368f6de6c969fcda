"""Replacements for Funnel, which keeps its positions in Python lists and pools by two unless two tokens are left.

Lengths at which no block is left with 2 tokens or fewer to pool are the original's domain: 3 and more with two blocks, 5
and more with three. Below, the original raises for ``attention_type="relative_shift"``, while the exported graph pools
on; for ``"factorized"`` it works, and the exported graph does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from trueport.patches.registry import Patch

FUNNEL = "transformers.models.funnel.modeling_funnel"


def _position_embeds(original: Callable[..., Any]) -> Callable[..., Any]:
    """``get_position_embeds`` from first position, last position and number instead of lists of positions.

    After ``b`` poolings token ``i`` stands at ``2**b * i``, or, behind a separate first token, at ``2**b * (i - 1) + 1``.
    """

    def get_position_embeds(self: nn.Module, seq_len: int, dtype: torch.dtype, device: torch.device) -> Any:
        if self.config.attention_type == "factorized":
            return original(self, seq_len, dtype, device)
        half = self.config.d_model // 2
        frequency = 1 / (10000 ** (torch.arange(half, device=device).to(dtype) / half))

        def embed(first: int, step: int, number: int) -> torch.Tensor:
            """Of the relative positions ``first``, ``first - step``, ... down, ``number`` of them."""
            angle = (first - step * torch.arange(number, device=device)).to(dtype)[:, None] * frequency
            return torch.cat([self.sin_dropout(angle.sin()), self.cos_dropout(angle.cos())], -1)

        grows = self.config.separate_cls and not self.config.truncate_seq
        length, embeds = seq_len, []
        for block in range(self.config.num_blocks):
            stride, pooling = 2**block, None
            if block > 0:
                before, length = length, length // 2 + 1 if grows else (length + 1) // 2
                # Pooled queries among unpooled keys: the first token of a pooled block stands one old step further left.
                offset = -stride // 2 if self.config.separate_cls else 0
                pooling = embed(offset + stride * length, stride // 2, 2 * length + before)
            embeds.append([embed(stride * length, stride, 2 * length), pooling])
        return embeds

    return get_position_embeds


PATCHES: tuple[Patch, ...] = (
    Patch(f"{FUNNEL}.FunnelAttentionStructure.get_position_embeds", "s", "u", _position_embeds, list, FUNNEL),
)
