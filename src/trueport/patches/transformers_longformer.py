"""Replacements for Longformer and LED: windowed attention of any length, with or without global tokens.

Both families read ``attention_mask`` as 0 (padding), 1 (local attention) or 2 (global attention: attends to all and is
attended by all), and so does the exported graph: the number of global tokens is a dimension computed at run time, and 0
is one of its values. Heads that mark tokens as global themselves (sequence classification) need no 2 in the mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from trueport.patches.patch import Patch

LONGFORMER = "transformers.models.longformer.modeling_longformer"
LED = "transformers.models.led.modeling_led"


def _padding_to(window: int, length: int) -> int:
    """Tokens up to the next multiple, written so that torch.export proves the padded length to be one."""
    return (length + window - 1) // window * window - length


def _window(config: Any) -> int:
    windows = config.attention_window
    return windows if isinstance(windows, int) else max(windows)


def _pad_led(original: Callable[..., Any]) -> Callable[..., Any]:
    """The encoder on tokens padded beforehand: its own ``[:, :-padding_len]`` is empty where ``padding_len`` is 0."""

    def forward(
        self: Any,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        global_attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **rest: Any,
    ) -> Any:
        wants = (output_attentions, output_hidden_states, self.config.output_attentions)
        if input_ids is None or any(wants) or self.config.output_hidden_states or return_dict is False:
            return original(
                self, input_ids, attention_mask, global_attention_mask, inputs_embeds, output_attentions,
                output_hidden_states, return_dict, **rest,
            )  # fmt: skip
        length = input_ids.shape[1]
        padding = _padding_to(_window(self.config), length)
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if global_attention_mask is not None:
            global_attention_mask = functional.pad(global_attention_mask, (0, padding), value=0)
        result = original(
            self,
            functional.pad(input_ids, (0, padding), value=self.config.pad_token_id),
            functional.pad(attention_mask, (0, padding), value=0),
            global_attention_mask,
            return_dict=True,
            **rest,
        )
        result.last_hidden_state = result.last_hidden_state[:, :length]
        return result

    return forward


def _attention(original: Callable[..., Any]) -> Callable[..., Any]:
    """The self-attention over blocks of keys, its global part over the tokens that are global, be they none.

    The original counts its chunks in tensors and asks ``if is_global_attn``; here the count of global tokens is a size.
    """

    def forward(
        self: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor,
        is_index_masked: torch.Tensor,
        is_index_global_attn: torch.Tensor,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, ...]:
        if output_attentions or self.training:
            return original(
                self, hidden_states, attention_mask, is_index_masked, is_index_global_attn, is_global_attn,
                output_attentions,
            )  # fmt: skip
        query = _heads(self, self.query(hidden_states) / math.sqrt(self.head_dim))
        key, value = _heads(self, self.key(hidden_states)), _heads(self, self.value(hidden_states))
        chosen = _global_positions(is_index_global_attn)
        context = _window_attention(self, query, key, value, attention_mask != 0, chosen)
        context = context.masked_fill(is_index_masked[:, :, None], 0.0)
        everywhere = _global_attention(self, hidden_states, is_index_masked, chosen)
        # Row ``rank`` of it belongs to a global token; the others read the row of zeros that is appended.
        rank = is_index_global_attn.long().cumsum(1) - 1
        rank = torch.where(is_index_global_attn, rank, everywhere.shape[1])
        spread = functional.pad(everywhere, (0, 0, 0, 1)).gather(1, rank[:, :, None].expand(context.shape))
        return (torch.where(is_index_global_attn[:, :, None], spread, context),)

    return forward


def _heads(attention: Any, tensor: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, width) to (batch, heads, tokens, head size)."""
    return tensor.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)


def _global_positions(is_global: torch.Tensor) -> torch.Tensor:
    """Each row's global positions, ascending, filled up with the sequence's length: (batch, most in any row)."""
    length = is_global.shape[1]
    most: Any = is_global.long().sum(1).max().item()
    torch._check(most >= 0)
    torch._check(most <= length)
    positions = torch.where(is_global, torch.arange(length, device=is_global.device), length)
    return positions.sort(dim=1).values.narrow(1, 0, most)


def _take(tensor: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """The rows of (batch, heads, tokens, size) at each batch row's positions."""
    index = positions.clamp(max=tensor.shape[2] - 1)[:, None, :, None]
    return tensor.gather(2, index.expand(-1, tensor.shape[1], -1, tensor.shape[3]))


def _blocks(tensor: torch.Tensor, width: int) -> torch.Tensor:
    """Each block with its neighbours: (batch, heads, tokens, size) to (batch, heads, blocks, 3 * width, size)."""
    length = tensor.shape[2]
    padded = functional.pad(tensor, (0, 0, width, width))
    shifted = [padded[:, :, start : start + length].unflatten(2, (-1, width)) for start in (0, width, 2 * width)]
    return torch.cat(shifted, 3)


def _window_attention(
    attention: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    excluded: torch.Tensor,
    chosen: torch.Tensor,
) -> torch.Tensor:
    """Every token over its window and over the global tokens, in one softmax: (batch, tokens, width)."""
    batch, heads, length, size = query.shape
    width = attention.one_sided_attn_window_size
    # A key is out of reach beyond the window, outside of the sequence, masked, or global and so counted elsewhere.
    allowed = _blocks(excluded.logical_not().to(query.dtype)[:, None, :, None], width).squeeze(-1) > 0
    offset = torch.arange(3 * width, device=query.device) - torch.arange(width, device=query.device)[:, None]
    allowed = allowed[:, :, :, None, :] & ((offset >= 0) & (offset <= 2 * width))
    lowest = torch.finfo(query.dtype).min
    blocks = query.unflatten(2, (-1, width))
    local = (blocks @ _blocks(key, width).transpose(-1, -2)).masked_fill(allowed.logical_not(), lowest)
    absent = (chosen == length)[:, None, None, :]
    shared = (query @ _take(key, chosen).transpose(-1, -2)).masked_fill(absent, lowest)
    scores = torch.cat([local.flatten(2, 3), shared], -1)
    chances = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    context = (chances[..., : 3 * width].unflatten(2, (-1, width)) @ _blocks(value, width)).flatten(2, 3)
    context = context + chances[..., 3 * width :] @ _take(value, chosen)
    return context.transpose(1, 2).reshape(batch, length, heads * size)


def _global_attention(attention: Any, hidden: torch.Tensor, masked: torch.Tensor, chosen: torch.Tensor) -> torch.Tensor:
    """Global tokens over the whole sequence, through projections of their own: (batch, most global tokens, width)."""
    queries = hidden.gather(1, chosen.clamp(max=hidden.shape[1] - 1)[:, :, None].expand(-1, -1, hidden.shape[2]))
    query = _heads(attention, attention.query_global(queries) / math.sqrt(attention.head_dim))
    # Without a global token nothing reads keys and values: project none of them.
    read: Any = ((chosen < hidden.shape[1]).any().long() * hidden.shape[1]).item()
    torch._check(read >= 0)
    torch._check(read <= hidden.shape[1])
    hidden, masked = hidden.narrow(1, 0, read), masked.narrow(1, 0, read)
    key = _heads(attention, attention.key_global(hidden))
    value = _heads(attention, attention.value_global(hidden))
    scores = (query @ key.transpose(-1, -2)).masked_fill(masked[:, None, None, :], torch.finfo(query.dtype).min)
    chances = torch.softmax(scores, -1, dtype=torch.float32).to(query.dtype)
    return (chances @ value).transpose(1, 2).flatten(2)


def _ids_and_masks() -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Lengths within, at and past a window of 4; masks of ones, with padding, with padding and global tokens."""
    generator = torch.Generator().manual_seed(0)
    pairs = []
    for length in (1, 3, 4, 5, 8, 11):
        mask = torch.randint(3, (2, length), generator=generator)
        mask[0, 0] = 1
        for masks in (torch.ones_like(mask), mask.clamp(max=1), mask):
            pairs.append((torch.randint(2, 20, (2, length), generator=generator), masks))
    return pairs


def _led_samples() -> list[tuple[Any, ...]]:
    from transformers import LEDConfig
    from transformers.models.led.modeling_led import LEDEncoder

    config = LEDConfig(
        vocab_size=20, d_model=8, encoder_layers=1, encoder_attention_heads=2, encoder_ffn_dim=8,
        attention_window=[4],
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = LEDEncoder(config).eval()
    samples: list[tuple[Any, ...]] = [(encoder, *pair) for pair in _ids_and_masks()]
    ids, mask = samples[-1][1:]
    return [*samples, (encoder, ids), (encoder, ids, mask.clamp(max=1), mask // 2)]


def _attention_samples(path: str) -> Callable[[], list[tuple[Any, ...]]]:
    """For either class: hidden states of whole windows, and masks as the models turn them into."""

    def samples() -> list[tuple[Any, ...]]:
        from importlib import import_module

        from transformers import LongformerConfig

        module, _, name = path.rpartition(".")
        config = LongformerConfig(hidden_size=8, num_attention_heads=2, attention_window=[4])
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            layer = getattr(import_module(module), name)(config, 0).eval()
        results = []
        for _, mask in _ids_and_masks():
            mask = functional.pad(mask, (0, -mask.shape[1] % 4))
            hidden = torch.randn(*mask.shape, 8, generator=generator)
            score = (mask - 1) * torch.finfo(torch.float32).max
            results.append((layer, hidden, score, mask == 0, mask == 2, bool((mask == 2).any())))
        return results

    return samples


BLOCKS = "counts its chunks in tensors, which torch.export refuses, and `if is_global_attn` reads the mask's values"

PATCHES: tuple[Patch, ...] = (
    Patch(
        f"{LONGFORMER}.LongformerSelfAttention.forward",
        symptom=BLOCKS,
        upstream="https://github.com/huggingface/optimum/issues/503",
        replacement=_attention,
        samples=_attention_samples(f"{LONGFORMER}.LongformerSelfAttention"),
        needed_by=LONGFORMER,
        versions=">=5.23",
        model="longformer",
    ),
    Patch(
        f"{LED}.LEDEncoder.forward",
        symptom="`hidden_states[:, :-padding_len]`, traced with padding, is empty at every multiple of the window",
        upstream="https://github.com/huggingface/transformers/pull/20292",
        replacement=_pad_led,
        samples=_led_samples,
        needed_by=LED,
        versions=">=5.23",
        model="led",
    ),
    Patch(
        f"{LED}.LEDEncoderSelfAttention.forward",
        symptom=BLOCKS,
        upstream="https://github.com/huggingface/optimum/issues/503",
        replacement=_attention,
        samples=_attention_samples(f"{LED}.LEDEncoderSelfAttention"),
        needed_by=LED,
        versions=">=5.23",
        model="led",
    ),
)
