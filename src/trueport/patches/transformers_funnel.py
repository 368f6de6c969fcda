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


def _pool_always(original: Callable[..., Any]) -> Callable[..., Any]:
    """The encoder without ``hidden.size(1) > 2``; where that is false, the pooling below keeps every token."""

    def forward(
        self: nn.Module,
        inputs_embeds: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        from transformers.modeling_outputs import BaseModelOutput

        if output_attentions or not return_dict:
            return original(
                self, inputs_embeds, attention_mask, token_type_ids, output_attentions, output_hidden_states, return_dict
            )
        structure = self.attention_structure
        mask = attention_mask.type_as(inputs_embeds)
        given = structure.init_attention_inputs(inputs_embeds, attention_mask=mask, token_type_ids=token_type_ids)
        hidden, states = inputs_embeds, [inputs_embeds]
        for number, block in enumerate(self.blocks):
            pooled = None
            if number > 0:
                pooled, given = structure.pre_attention_pooling(hidden, given)
            for layer in (layer for layer in block for _ in range(self.config.block_repeats[number])):
                query = hidden if pooled is None else pooled
                key = hidden if self.config.pool_q_only else query
                hidden = layer(query, key, key, given)[0]
                if pooled is not None:
                    given = structure.post_attention_pooling(given)
                    pooled = None
                states.append(hidden)
        return BaseModelOutput(last_hidden_state=hidden, hidden_states=tuple(states) if output_hidden_states else None)

    return forward


def _pairs(config: Any, length: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """First and last position of each pair that is pooled into one; the same one twice where a pair is not full.

    A separate first token is paired with itself, so that the pairs behind it begin at 1, 3, 5, ...
    """
    separate, cut = config.separate_cls, config.separate_cls and config.truncate_seq
    count = length + 1 if separate and not cut else length
    kept = (count + 1) // 2
    if cut and config.attention_type == "factorized":
        kept = kept + (2 // length) % 2  # 2 tokens stay 2 tokens, as where the original does not pool
    first = 2 * torch.arange(kept, device=device)
    last = torch.minimum(first + 1, torch.full_like(first, 1) * (count - 1))
    if separate:
        first, last = (first - 1).clamp(min=0), (last - 1).clamp(min=0)
    return first, torch.maximum(first, last)


def _stride_pool(original: Callable[..., Any]) -> Callable[..., Any]:
    """``stride_pool`` by the positions that ``pool_tensor`` pools, so that both come out equally long by construction."""

    def stride_pool(self: nn.Module, tensor: Any, axis: int | tuple[int, ...] | list[int]) -> Any:
        if not isinstance(tensor, torch.Tensor) or isinstance(axis, (list, tuple)):
            return original(self, tensor, axis)  # which calls this again for each tensor and axis
        axis %= tensor.ndim
        return tensor.index_select(axis, _pairs(self.config, tensor.shape[axis], tensor.device)[0])

    return stride_pool


def _pool_tensor(original: Callable[..., Any]) -> Callable[..., Any]:
    """``pool_tensor`` by position: the shape of a pooling with ``ceil_mode`` depends on whether the length is odd."""

    def pool_tensor(self: nn.Module, tensor: Any, mode: str = "mean", stride: int = 2) -> Any:
        if not isinstance(tensor, torch.Tensor) or stride != 2:
            return original(self, tensor, mode=mode, stride=stride)
        first, last = (
            tensor.index_select(1, index) for index in _pairs(self.config, tensor.shape[1], tensor.device)
        )
        if mode == "mean":
            return (first + last) / 2
        return torch.maximum(first, last) if mode == "max" else torch.minimum(first, last)

    return pool_tensor


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
    Patch(f"{FUNNEL}.FunnelEncoder.forward", "s", "u", _pool_always, list, FUNNEL),
    Patch(f"{FUNNEL}.FunnelAttentionStructure.stride_pool", "s", "u", _stride_pool, list, FUNNEL),
    Patch(f"{FUNNEL}.FunnelAttentionStructure.pool_tensor", "s", "u", _pool_tensor, list, FUNNEL),
    Patch(f"{FUNNEL}.FunnelAttentionStructure.get_position_embeds", "s", "u", _position_embeds, list, FUNNEL),
)
