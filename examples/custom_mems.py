"""A GLM-like language model whose ``mems`` exist from its second call on, exported to one graph for each target.

    python examples/custom_mems.py OUT

The first call of the graph is the one with ``mems`` of length 0: there is no second decoder and no ``If``.
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import nn

import trueport


class Block(nn.Module):
    """Attention over the memory and the new tokens, which see one another up to themselves, and a feed-forward part."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query, self.memory, self.out = (
            nn.Linear(width, width),
            nn.Linear(width, 2 * width),
            nn.Linear(width, width),
        )
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, hidden: torch.Tensor, mem: torch.Tensor | None) -> torch.Tensor:
        """(batch, length, width) and (batch, past, width) to (batch, length, width)."""
        seen = hidden if mem is None else torch.cat([mem, hidden], 1)
        batch, new, past = hidden.shape[0], hidden.shape[1], seen.shape[1] - hidden.shape[1]
        query = self.query(self.before(hidden)).view(batch, new, self.heads, -1).transpose(1, 2)
        key, value = (
            part.view(batch, past + new, self.heads, -1).transpose(1, 2)
            for part in self.memory(self.before(seen)).chunk(2, -1)
        )
        places = torch.arange(past + new)
        mask = places[None, :] <= places[past:, None]
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, mask)
        hidden = hidden + self.out(mixed.transpose(1, 2).reshape(batch, new, -1))
        return hidden + self.feed(self.after(hidden))


class Glm(nn.Module):
    """Token and block positions as GLM has them, and ``mems``: what every layer was given, of all tokens so far."""

    def __init__(self, vocabulary: int = 64, width: int = 32, layers: int = 3, longest: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(vocabulary, width)
        self.positions, self.block_positions = nn.Embedding(longest, width), nn.Embedding(longest, width)
        self.blocks = nn.ModuleList(Block(width, heads=4) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, input_ids: torch.Tensor, position_ids: torch.Tensor, mems: list[torch.Tensor] | None = None
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """(batch, length) ids, (batch, 2, length) positions, (batch, past, width) a layer, to logits and new mems."""
        hidden = self.words(input_ids) + self.positions(position_ids[:, 0]) + self.block_positions(position_ids[:, 1])
        new_mems = []
        for index, block in enumerate(self.blocks):
            mem = None if mems is None else mems[index]
            new_mems.append(hidden if mem is None else torch.cat([mem, hidden], 1))
            hidden = block(hidden, mem)
        return self.norm(hidden) @ self.words.weight.T, new_mems


def places(start: int, length: int, rows: int = 1) -> torch.Tensor:
    """(rows, 2, length): the position in the text, and in a block that has not begun."""
    text = torch.arange(start, start + length)
    return torch.stack([text, torch.zeros_like(text)]).expand(rows, 2, length)


def recipe() -> dict[str, Any]:
    """What ``trueport export examples/custom_mems.py OUT`` exports."""
    torch.manual_seed(0)
    sample = {"input_ids": torch.randint(0, 64, (2, 7)), "position_ids": places(0, 7, rows=2) % 128}
    return {"model": Glm().eval(), "inputs": sample, "state": {1: "mems"}}


def main(out: str) -> list[int]:
    """Export to both targets, load each, and write five tokens."""
    trueport.export(**recipe(), out=out, to="onnx,executorch", max_batch=2, max_length=64)
    onnx, program = (generate(trueport.load(out, runtime=runtime)) for runtime in ("onnx", "executorch"))
    assert onnx == program, "both are proven"
    return onnx


def generate(loaded: Any) -> list[int]:
    """Five tokens after a prompt, the state handed on."""
    tokens, state = [5, 17, 42], None
    new = torch.tensor([tokens])
    for _ in range(5):
        feeds = {"input_ids": new, "position_ids": places(len(tokens) - new.shape[1], new.shape[1])}
        outputs, state = loaded.step(feeds, state)  # the first without a state, the others with what they left
        new = outputs["output_0"][:, -1:].argmax(-1)
        tokens.append(int(new))
    return tokens


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", help="the folder to write")
    print(main(parser.parse_args().out))
