"""A replacement for Funnel, which keeps its positions in Python lists.

Funnel pools by two in each block but the first, unless 2 tokens or fewer are left; the exported graph always pools. So
it holds from ``2 ** (len(config.block_sizes) - 1) + 1`` tokens on. With fewer the original itself raises for the usual
``attention_type="relative_shift"``; for ``"factorized"`` it goes on, and the graph differs from it there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from trueport.patches.patch import Patch

FUNNEL = "transformers.models.funnel.modeling_funnel"


def _position_embeds(original: Callable[..., Any]) -> Callable[..., Any]:
    """``get_position_embeds`` from first position, last position and number instead of lists of positions.

    After ``b`` poolings token ``i`` stands at ``2**b * i``, or, if the first is separate, at ``2**b * (i - 1) + 1``.
    """

    def get_position_embeds(self: Any, seq_len: int, dtype: torch.dtype, device: torch.device) -> Any:
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
                # Pooled queries among unpooled keys; pooling moves a separate first token one old step to the left.
                offset = -stride // 2 if self.config.separate_cls else 0
                pooling = embed(offset + stride * length, stride // 2, 2 * length + before)
            embeds.append([embed(stride * length, stride, 2 * length), pooling])
        return embeds

    return get_position_embeds


def _position_samples() -> list[tuple[Any, ...]]:
    """Every way of pooling, at lengths that the original's table of positions covers."""
    from transformers import FunnelConfig
    from transformers.models.funnel.modeling_funnel import FunnelAttentionStructure

    options: list[dict[str, Any]] = [{}, {"truncate_seq": False}, {"separate_cls": False}]
    samples = []
    for option in [*options, {"attention_type": "factorized"}]:
        structure = FunnelAttentionStructure(FunnelConfig(d_model=8, block_sizes=[1, 2, 1], **option)).eval()
        samples += [(structure, length, torch.float32, torch.device("cpu")) for length in (5, 7, 8, 9, 16, 21)]
    return samples


PATCHES: tuple[Patch, ...] = (
    Patch(
        f"{FUNNEL}.FunnelAttentionStructure.get_position_embeds",
        symptom="relative positions in Python lists fix the sequence length in the graph",
        upstream="`pos = list(range(seq_len))`; https://github.com/huggingface/optimum/pull/1231",
        replacement=_position_embeds,
        samples=_position_samples,
        needed_by=FUNNEL,
        versions=">=5.23",
        model="funnel",
    ),
)
