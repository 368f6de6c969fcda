"""Recurrences over tokens as operators of torch: to a trace each is one node, which every target writes in its own way.

What they compute is written down here, token by token. All is in float32, as in the kernels that they stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Pair = tuple[torch.Tensor, torch.Tensor]
Step = Callable[..., Pair]
"""The state, one token of each input, and what all tokens share, to the next state and the token's output."""


def delta_step(
    state: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    beta: torch.Tensor,
) -> Pair:
    """One token of ``delta_rule``, (batch, heads, ...); ``kept`` is the decay itself, not its logarithm."""
    state = state * kept.unsqueeze(-1)
    told = (key.unsqueeze(-2) @ state).squeeze(-2)
    state = state + key.unsqueeze(-1) * ((value - told) * beta.unsqueeze(-1)).unsqueeze(-2)
    return state, (query.unsqueeze(-2) @ state).squeeze(-2)


def space_step(
    state: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, given: torch.Tensor, read: torch.Tensor
) -> Pair:
    """One token of ``state_space``, (batch, heads, ...); ``kept`` is the decay itself, not its logarithm."""
    state = state * kept.unsqueeze(-1) + value.unsqueeze(-1) * given.unsqueeze(-2)
    return state, (state @ read.unsqueeze(-1)).squeeze(-1)


def channels_step(
    state: torch.Tensor,
    x: torch.Tensor,
    time: torch.Tensor,
    given: torch.Tensor,
    read: torch.Tensor,
    rate: torch.Tensor,
) -> Pair:
    """One token of ``state_space_by_channels``, (batch, ...)."""
    new = (time * x).unsqueeze(-1) * given.unsqueeze(-2)
    state = state * (time.unsqueeze(-1) * rate).exp() + new
    return state, (state @ read.unsqueeze(-1)).squeeze(-1)


def _stepped(step: Step, state: torch.Tensor, inputs: Sequence[torch.Tensor], *shared: torch.Tensor) -> Pair:
    """Token by token: the outputs, (batch, length, ...), and the last state, of inputs (batch, length, ...)."""
    outputs = []
    for token in zip(*(tensor.unbind(1) for tensor in inputs), strict=True):
        state, output = step(state, *token, *shared)
        outputs.append(output)
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
    return _stepped(delta_step, state, (query, key, value, decay.exp(), beta))


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
    return _stepped(delta_step, state, (query, key, value, decay.exp(), beta))


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
    return _stepped(space_step, state, (value, decay.exp(), given, read))


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
    return _stepped(channels_step, state, (x, time, given, read), rate)


def _like(values: int) -> Callable[..., Pair]:
    """The shapes of what an operator gives: those of its input number ``values``, and of the state, which comes last."""

    def fake(*given: torch.Tensor) -> Pair:
        return torch.empty_like(given[values], memory_format=torch.contiguous_format), torch.empty_like(given[-1])

    return fake


for _operator, _values in (
    (delta_rule, 2),
    (delta_rule_by_channels, 2),
    (state_space, 0),
    (state_space_by_channels, 0),
):
    _operator.register_fake(_like(_values))
