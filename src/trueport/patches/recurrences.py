"""Recurrences over tokens, each as one scan: what transformers' linear-attention kernels compute, at any length.

A step reads the state, (batch, heads, ...), and one token of every input; ``scan`` gives it the tokens in turn. All is in
float32, as in the kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

Step = Callable[[torch.Tensor, Sequence[torch.Tensor]], tuple[torch.Tensor, torch.Tensor]]
"""A state and one token's inputs to the next state and one token's output."""


def scanned(step: Step, state: torch.Tensor, inputs: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs, (length, ...), and the last state.

    Args:
        step: what a token does.
        state: before the first.
        inputs: (length, ...) each.
    """
    from torch._higher_order_ops.scan import scan

    def combine(carried: list[torch.Tensor], rows: list[torch.Tensor]) -> tuple[list[torch.Tensor], torch.Tensor]:
        following, output = step(carried[0], rows)
        return [following.clone()], output.clone()  # a scan may not give out one tensor twice

    (last,), outputs = scan(combine, [state.clone()], list(inputs))
    return outputs, last


def delta_rule(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The gated delta rule: S <- exp(decay) S; S <- S + beta key (value - S^T key)^T; output S^T query.

    Yang, Kautz, Hatamizadeh: Gated Delta Networks (arXiv 2412.06464), equation 10; with a decay for each key channel, Kimi
    Delta Attention (arXiv 2510.26692).

    Args:
        query: (batch, length, heads, key_size), scaled.
        key: the same shape.
        value: (batch, length, heads, value_size).
        decay: (batch, length, heads, 1 or key_size), logarithms.
        beta: (batch, length, heads).
        state: (batch, heads, key_size, value_size).

    Returns:
        (batch, length, heads, value_size), and the next state.
    """

    def step(state: torch.Tensor, token: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        query, key, value, kept, beta = token
        state = state * kept.unsqueeze(-1)
        told = (key.unsqueeze(-2) @ state).squeeze(-2)
        state = state + key.unsqueeze(-1) * ((value - told) * beta.unsqueeze(-1)).unsqueeze(-2)
        return state, (query.unsqueeze(-2) @ state).squeeze(-2)

    inputs = [tensor.transpose(0, 1) for tensor in (query, key, value, decay.exp(), beta)]
    outputs, last = scanned(step, state, inputs)
    return outputs.transpose(0, 1), last


def state_space(
    x: torch.Tensor,
    time: torch.Tensor,
    rate: torch.Tensor,
    given: torch.Tensor,
    read: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """A selective state space: S <- exp(time rate) S + time x given^T; output S read.

    Gu, Dao: Mamba (arXiv 2312.00752), equations 2 and 4; of Mamba-2 (arXiv 2405.21060) with one rate for each head.

    Args:
        x: (batch, length, heads, head_size); of Mamba one head, whose size is the number of channels.
        time: (batch, length, heads, 1 or head_size).
        rate: (heads, 1 or head_size, 1 or state_size), negative.
        given: (batch, length, heads, state_size).
        read: the same shape.
        state: (batch, heads, head_size, state_size).

    Returns:
        (batch, length, heads, head_size), and the next state.
    """

    def step(state: torch.Tensor, token: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        x, time, given, read = token
        state = state * (time.unsqueeze(-1) * rate).exp() + (time * x).unsqueeze(-1) * given.unsqueeze(-2)
        return state, (state @ read.unsqueeze(-1)).squeeze(-1)

    outputs, last = scanned(step, state, [tensor.transpose(0, 1) for tensor in (x, time, given, read)])
    return outputs.transpose(0, 1), last
