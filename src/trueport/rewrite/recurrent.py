"""``nn.LSTM``, ``nn.GRU`` and ``nn.RNN`` as one scan for each layer and direction: any length in one graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

Cell = Callable[[torch.Tensor, tuple[torch.Tensor, ...], Sequence[torch.Tensor]], tuple[torch.Tensor, ...]]
"""The input of one step, projected (batch, gates); the state; recurrent weight and bias; to the next state."""


def _lstm(
    x: torch.Tensor, state: tuple[torch.Tensor, ...], weights: Sequence[torch.Tensor]
) -> tuple[torch.Tensor, ...]:
    gates = x + torch.nn.functional.linear(state[0], *weights[:2])
    take, keep, new, show = gates.chunk(4, -1)
    cell = keep.sigmoid() * state[1] + take.sigmoid() * new.tanh()
    return _projected(show.sigmoid() * cell.tanh(), weights), cell


def _projected(hidden: torch.Tensor, weights: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.nn.functional.linear(hidden, weights[2]) if len(weights) > 2 else hidden


def _gru(x: torch.Tensor, state: tuple[torch.Tensor, ...], weights: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    (hidden,) = state
    reset, update, new = x.chunk(3, -1)
    own_reset, own_update, own_new = torch.nn.functional.linear(hidden, *weights[:2]).chunk(3, -1)
    update = (update + own_update).sigmoid()
    new = (new + (reset + own_reset).sigmoid() * own_new).tanh()
    return ((1 - update) * new + update * hidden,)


def _plain(activation: Callable[[torch.Tensor], torch.Tensor]) -> Cell:
    def cell(
        x: torch.Tensor, state: tuple[torch.Tensor, ...], weights: Sequence[torch.Tensor]
    ) -> tuple[torch.Tensor, ...]:
        return (activation(x + torch.nn.functional.linear(state[0], *weights[:2])),)

    return cell


RECURRENT: dict[str, Cell] = {
    "lstm": _lstm,
    "gru": _gru,
    "rnn_tanh": _plain(torch.tanh),
    "rnn_relu": _plain(torch.relu),
}
"""Cells by the name of torch's function."""

UNROLLED = 32
"""Steps of a constant length that are written out: a runtime without scans serves a module that is called token by token."""


def recurrent(
    kind: str,
    x: torch.Tensor,
    state: Any,
    weights: Sequence[torch.Tensor],
    biased: bool,
    layers: int,
    dropout: float,
    train: bool,
    both: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """What ``torch.lstm`` and its kin return: the outputs, and the last states of all layers.

    Args:
        kind: a key of ``RECURRENT``.
        x: (length, batch, features), or (batch, length, features) with ``batch_first``.
        state: (layers * directions, batch, hidden), a pair of them for an LSTM.
        weights: of every layer and direction in turn, as torch keeps them.
        biased: whether there are biases.
        layers: their number.
        dropout: of training, unused.
        train: never.
        both: whether every layer also reads backwards.
        batch_first: see ``x``.
    """
    states = tuple(state) if isinstance(state, (tuple, list)) else (state,)
    x = x.transpose(0, 1) if batch_first else x
    directions = 2 if both else 1
    each = len(weights) // (layers * directions)
    last: list[tuple[torch.Tensor, ...]] = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            number = layer * directions + direction
            own = weights[number * each : (number + 1) * each]
            begun = tuple(part[number] for part in states)
            output, end = _layer(RECURRENT[kind], x, begun, own, biased, backwards=direction == 1)
            outputs.append(output)
            last.append(end)
        x = torch.cat(outputs, -1) if both else outputs[0]
    ends = [torch.stack(parts) for parts in zip(*last, strict=True)]
    return (x.transpose(0, 1) if batch_first else x, *ends)


def _layer(
    cell: Cell,
    x: torch.Tensor,
    state: tuple[torch.Tensor, ...],
    weights: Sequence[torch.Tensor],
    biased: bool,
    *,
    backwards: bool,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """Outputs (length, batch, hidden) and the last state of one layer in one direction."""
    from torch._higher_order_ops.scan import scan

    own = list(weights)
    gates, recurring = own[0], own[1]
    bias, recurring_bias = (own[2], own[3]) if biased else (None, recurring.new_zeros(recurring.shape[0]))
    # The input's half of every gate is one product over all steps; only the state's half is left to each.
    projected = torch.nn.functional.linear(x, gates, bias)
    extra = own[4 if biased else 2 :]
    inner = [recurring, recurring_bias, *extra]

    def step(carried: Any, row: torch.Tensor) -> Any:
        following = cell(row, tuple(carried), inner)
        # A scan may not give out one tensor twice.
        return [part.clone() for part in following], following[0].clone()

    if isinstance(x.shape[0], int) and x.shape[0] <= UNROLLED:
        rows, shown = list(projected.unbind(0)), []
        for row in reversed(rows) if backwards else rows:
            state = cell(row, state, inner)
            shown.append(state[0])
        return torch.stack(shown[::-1] if backwards else shown), state
    end, outputs = scan(step, [part.clone() for part in state], projected, reverse=backwards)
    return outputs, tuple(end)
