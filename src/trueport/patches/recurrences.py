"""Recurrences over tokens as operators of torch: to a trace each is one node, which every target writes in its own way.

What they compute is written down here, token by token. All is in float32, as in the kernels that they stand for.
"""

from __future__ import annotations

import torch

Pair = tuple[torch.Tensor, torch.Tensor]


def _delta(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> Pair:
    outputs = []
    for token in range(query.shape[1]):
        state = state * decay[:, token].exp().unsqueeze(-1)
        told = (key[:, token].unsqueeze(-2) @ state).squeeze(-2)
        right = (value[:, token] - told) * beta[:, token].unsqueeze(-1)
        state = state + key[:, token].unsqueeze(-1) * right.unsqueeze(-2)
        outputs.append((query[:, token].unsqueeze(-2) @ state).squeeze(-2))
    return torch.stack(outputs, 1), state


@torch.library.custom_op("trueport::delta_rule", mutates_args=())
def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> Pair:
    """The gated delta rule: S <- exp(decay) S; S <- S + beta key (value - S^T key)^T; output S^T query.

    Yang, Kautz, Hatamizadeh: Gated Delta Networks (arXiv 2412.06464), equation 10.

    Args:
        query: (batch, length, heads, key_size), scaled.
        key: the same shape.
        value: (batch, length, heads, value_size).
        decay: (batch, length, heads, 1), logarithms.
        beta: (batch, length, heads).
        state: (batch, heads, key_size, value_size).

    Returns:
        (batch, length, heads, value_size), and the next state.
    """
    return _delta(query, key, value, decay, beta, state)


@torch.library.custom_op("trueport::delta_rule_by_channels", mutates_args=())
def delta_rule_by_channels(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> Pair:
    """The gated delta rule with a decay for each channel of the keys, as in Kimi Delta Attention (arXiv 2510.26692).

    Args:
        query: (batch, length, heads, key_size), scaled.
        key: the same shape.
        value: (batch, length, heads, value_size).
        decay: (batch, length, heads, key_size), logarithms.
        beta: (batch, length, heads).
        state: (batch, heads, key_size, value_size).
    """
    return _delta(query, key, value, decay, beta, state)


@torch.library.custom_op("trueport::state_space", mutates_args=())
def state_space(
    value: torch.Tensor, decay: torch.Tensor, given: torch.Tensor, read: torch.Tensor, state: torch.Tensor
) -> Pair:
    """Mamba-2's state space: S <- exp(decay) S + value given^T; output S read.

    Dao, Gu: Transformers are SSMs (arXiv 2405.21060), equation 1 with the time step taken into value and decay.

    Args:
        value: (batch, length, heads, head_size).
        decay: (batch, length, heads, 1), logarithms.
        given: (batch, length, heads, state_size).
        read: the same shape.
        state: (batch, heads, head_size, state_size).

    Returns:
        (batch, length, heads, head_size), and the next state.
    """
    outputs = []
    for token in range(value.shape[1]):
        new = value[:, token].unsqueeze(-1) * given[:, token].unsqueeze(-2)
        state = state * decay[:, token].exp().unsqueeze(-1) + new
        outputs.append((state @ read[:, token].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), state


@torch.library.custom_op("trueport::state_space_by_channels", mutates_args=())
def state_space_by_channels(
    x: torch.Tensor,
    time: torch.Tensor,
    rate: torch.Tensor,
    given: torch.Tensor,
    read: torch.Tensor,
    state: torch.Tensor,
) -> Pair:
    """Mamba's selective state space: S <- exp(time rate) S + time x given^T; output S read.

    Gu, Dao: Mamba (arXiv 2312.00752), equations 2 and 4.

    Args:
        x: (batch, length, channels).
        time: the same shape, positive.
        rate: (channels, state_size), negative.
        given: (batch, length, state_size).
        read: the same shape.
        state: (batch, channels, state_size).

    Returns:
        (batch, length, channels), and the next state.
    """
    outputs = []
    for token in range(x.shape[1]):
        step = time[:, token].unsqueeze(-1)
        new = step * x[:, token].unsqueeze(-1) * given[:, token].unsqueeze(-2)
        state = state * (step * rate).exp() + new
        outputs.append((state @ read[:, token].unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1), state


@delta_rule.register_fake
@delta_rule_by_channels.register_fake
def _like_values(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> Pair:
    return torch.empty_like(value, memory_format=torch.contiguous_format), torch.empty_like(state)


@state_space.register_fake
def _like_heads(
    value: torch.Tensor, decay: torch.Tensor, given: torch.Tensor, read: torch.Tensor, state: torch.Tensor
) -> Pair:
    return torch.empty_like(value, memory_format=torch.contiguous_format), torch.empty_like(state)


@state_space_by_channels.register_fake
def _like_channels(
    x: torch.Tensor,
    time: torch.Tensor,
    rate: torch.Tensor,
    given: torch.Tensor,
    read: torch.Tensor,
    state: torch.Tensor,
) -> Pair:
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(state)
