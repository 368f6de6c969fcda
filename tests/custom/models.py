"""Small modules that are no PreTrainedModels, written in the ways in which people write them."""

from __future__ import annotations

import math

import torch
from torch import nn

VOCABULARY, WIDTH = 30, 8


class GluonBert(nn.Module):
    """gluon-nlp's encoder: masks from ``arange`` against ``valid_length``, inputs times the root of their width."""

    def __init__(self, longest: int = 32) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(2, WIDTH)
        self.positions = nn.Embedding(longest, WIDTH)
        self.heads = 2
        self.project, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.norm = nn.LayerNorm(WIDTH)

    def forward(
        self, inputs: torch.Tensor, token_types: torch.Tensor, valid_length: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """(batch, length) ids and types, (batch) lengths, to (batch, length, width) states and the first of them."""
        batch, length = inputs.shape
        steps = torch.arange(length)
        hidden = self.words(inputs) + self.types(token_types)
        hidden = hidden * math.sqrt(hidden.shape[-1]) + self.positions(steps)
        mask = steps[None, :] < valid_length[:, None]
        mask = mask[:, None, :].expand(-1, length, -1)
        query, key, value = (
            part.view(batch, length, self.heads, -1).transpose(1, 2) for part in self.project(hidden).chunk(3, -1)
        )
        scores = query @ key.transpose(2, 3) / math.sqrt(query.shape[-1])
        weights = scores.masked_fill(~mask[:, None], -1e18).softmax(-1) * mask[:, None]
        hidden = self.norm(hidden + self.out((weights @ value).transpose(1, 2).reshape(batch, length, -1)))
        return hidden, hidden[:, 0]


class Mems(nn.Module):
    """Transformer-XL's way: ``mems`` absent at first, then the past of every layer, or its last ``window`` states."""

    def __init__(self, window: int | None = None) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(2))
        self.window = window

    def forward(self, ids: torch.Tensor, mems: list[torch.Tensor] | None = None) -> dict[str, object]:
        """(batch, length) ids and (batch, past, width) for each layer, to logits and the new mems."""
        hidden, new = self.words(ids), []
        for index, layer in enumerate(self.layers):
            seen = hidden if mems is None else torch.cat([mems[index], hidden], 1)
            new.append(seen if self.window is None else seen[:, -self.window :])
            places = torch.arange(seen.shape[1])
            ahead = places[None, :] > places[seen.shape[1] - hidden.shape[1] :, None]
            scores = (layer(hidden) @ seen.transpose(1, 2)).masked_fill(ahead, -1e9)
            hidden = hidden + scores.softmax(-1) @ seen
        return {"logits": hidden @ self.words.weight.T, "mems_out": new}


class MaskedMems(nn.Module):
    """GLM's way: a mask over past and new tokens, and a limit that the builtin ``min`` sets."""

    def __init__(self, longest: int = 6) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.longest = longest

    def forward(
        self, ids: torch.Tensor, mask: torch.Tensor, mems: list[torch.Tensor]
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, length) ids, (batch, past + length) mask, (batch, past, width) to logits and mems."""
        hidden = self.words(ids)
        seen = torch.cat([mems[0], hidden], 1)
        places = torch.arange(seen.shape[1])
        hide = (mask[:, None] == 0) | (places[None, :] > places[seen.shape[1] - hidden.shape[1] :, None])
        scores = (self.layer(hidden) @ seen.transpose(1, 2)).masked_fill(hide, -1e9)
        kept = min(self.longest, seen.shape[1])
        return (hidden + scores.softmax(-1) @ seen) @ self.words.weight.T, [seen[:, seen.shape[1] - kept :]]


class XlNetLike(nn.Module):
    """Time first, an attention window, and mems as long as that."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.layer = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(
        self, ids: torch.Tensor, mems: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, length) ids and (past, batch, width) to logits and mems."""
        hidden = self.words(ids.t())
        seen = hidden if mems is None else torch.cat([mems[0], hidden], 0)
        places = torch.arange(seen.shape[0])
        own = places[seen.shape[0] - hidden.shape[0] :, None]
        hide = (places[None, :] > own) | (places[None, :] <= own - 4)
        scores = torch.einsum("ibd,jbd->bij", self.layer(hidden), seen).masked_fill(hide, -1e9)
        hidden = hidden + torch.einsum("bij,jbd->ibd", scores.softmax(-1), seen)
        return (hidden @ self.words.weight.T).transpose(0, 1), [seen[-3:]]


class Lstm(nn.Module):
    """A language model of LSTM layers."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.LSTM(WIDTH, WIDTH, num_layers=2, batch_first=True)

    def forward(self, ids: torch.Tensor, hx: tuple[torch.Tensor, torch.Tensor] | None = None) -> dict[str, object]:
        """(batch, length) ids and a pair of (layers, batch, width) to logits and the next pair."""
        output, hx = self.layers(self.words(ids), hx)
        return {"logits": output @ self.words.weight.T, "hx": hx}


class Mamba(nn.Module):
    """A short convolution and a recurrent state, zeros at first."""

    def __init__(self, taps: int = 4, states: int = 3) -> None:
        super().__init__()
        self.taps, self.states = taps, states
        self.enter, self.convolve = nn.Linear(WIDTH, 2 * WIDTH), nn.Conv1d(WIDTH, WIDTH, taps, groups=WIDTH)
        self.select = nn.Linear(WIDTH, WIDTH + 2 * states)
        self.decay = nn.Parameter(torch.randn(WIDTH, states))

    def forward(
        self, x: torch.Tensor, conv_state: torch.Tensor | None = None, ssm_state: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        """(batch, length, width), (batch, width, taps - 1), (batch, width, states) to the same, one step on."""
        if conv_state is None:
            conv_state = x.new_zeros(x.shape[0], WIDTH, self.taps - 1)
        if ssm_state is None:
            ssm_state = x.new_zeros(x.shape[0], WIDTH, self.states)
        hidden, gate = self.enter(x).chunk(2, -1)
        window = torch.cat([conv_state, hidden.transpose(1, 2)], 2)
        hidden = nn.functional.silu(self.convolve(window)).transpose(1, 2)
        rows = torch.cat([hidden, self.select(hidden)], -1).transpose(0, 1)
        outputs = []
        for row in rows:
            value, step, into, out = row.split([WIDTH, WIDTH, self.states, self.states], -1)
            step = nn.functional.softplus(step)[:, :, None]
            ssm_state = ssm_state * torch.exp(-step * self.decay.exp()) + step * into[:, None] * value[:, :, None]
            outputs.append((ssm_state * out[:, None]).sum(-1))
        y = torch.stack(outputs, 1) * nn.functional.silu(gate)
        return {"y": y, "conv_state": window[:, :, -(self.taps - 1) :], "ssm_state": ssm_state}


class Rwkv(nn.Module):
    """RWKV's weighted average of values, its numerator and denominator handed on."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.keys, self.values = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(8, 8)
        self.decay, self.bonus = nn.Parameter(torch.randn(WIDTH)), nn.Parameter(torch.randn(WIDTH))

    def forward(self, ids: torch.Tensor, state: list[torch.Tensor] | None = None) -> dict[str, object]:
        """(batch, length) ids and twice (batch, width) to logits and the next state."""
        hidden = self.words(ids)
        if state is None:
            state = [hidden.new_zeros(ids.shape[0], WIDTH), hidden.new_zeros(ids.shape[0], WIDTH)]
        above, below = state
        outputs = []
        for row in torch.cat([self.keys(hidden), self.values(hidden)], -1).transpose(0, 1):
            key, value = row.chunk(2, -1)
            now = torch.exp(key + self.bonus)
            outputs.append((above + now * value) / (below + now))
            above = above * torch.exp(-self.decay.exp()) + torch.exp(key) * value
            below = below * torch.exp(-self.decay.exp()) + torch.exp(key)
        return {"logits": torch.stack(outputs, 1) @ self.words.weight.T, "state": [above, below]}


def ids(*shape: int) -> torch.Tensor:
    """Seeded token ids."""
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(1))
