"""Which outputs are states, where the user does not say, and how they begin."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import trueport
from tests.custom.models import ids
from trueport.calls import arguments_of
from trueport.roles.custom import describe
from trueport.roles.states import stateful

WIDTH = 8


class Ring(nn.Module):
    """A ring of four tokens and how many went in: either of them alone changes nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.query = nn.Embedding(30, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(
        self, ids: torch.Tensor, ring: torch.Tensor | None = None, count: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        ring = torch.zeros(ids.shape[0], 4, WIDTH) if ring is None else ring
        count = torch.zeros(ids.shape[0], dtype=torch.long) if count is None else count
        answers = []
        for token in self.words(ids).transpose(0, 1):
            here = (count % 4)[:, None] == torch.arange(4)
            ring = torch.where(here[..., None], token[:, None], ring)
            count = count + 1
            scores = (ring @ self.query(token)[..., None])[..., 0]
            scores = scores.masked_fill(torch.arange(4) >= count[:, None], -1e9)
            answers.append((scores.softmax(-1)[..., None] * ring).sum(1))
        return {"y": torch.stack(answers, 1), "ring": ring, "count": count}


class Mean(nn.Module):
    """A running mean and its weight, ``n``, a letter that stands in ``mean`` too."""

    def forward(
        self, x: torch.Tensor, mean: torch.Tensor | None = None, n: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        mean = x.new_zeros(x.shape[-1]) if mean is None else mean
        n = x.new_zeros(()) if n is None else n
        total = n + x.shape[0] * x.shape[1]
        mean = (mean * n + x.sum((0, 1))) / total
        return {"y": x - mean, "mean": mean, "n": total}


class Hidden(nn.Module):
    """``h`` is a state, and ``hidden``, which the module would take for it, is none."""

    def forward(self, x: torch.Tensor, h: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        h = torch.zeros_like(x) if h is None else h
        return {"hidden": torch.tanh(x + h), "new_h": 0.5 * h + x}


class Both(nn.Module):
    """Two memories, of which one without the other counts for nothing."""

    def forward(
        self, x: torch.Tensor, keys: torch.Tensor | None = None, values: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        if keys is None or values is None:
            keys = values = torch.zeros_like(x)
        return {"y": x + keys * values, "keys": keys + x, "values": values - x}


FOUND: list[tuple[Callable[[], nn.Module], dict[str, torch.Tensor], dict[str, str]]] = [
    (Ring, {"ids": ids(2, 5)}, {"ring": "present_ring", "count": "present_count"}),
    (Mean, {"x": torch.randn(2, 5, WIDTH)}, {"mean": "present_mean", "n": "present_n"}),
    (Hidden, {"x": torch.randn(2, WIDTH)}, {"h": "present_h"}),
    (Both, {"x": torch.randn(2, WIDTH)}, {"keys": "present_keys", "values": "present_values"}),
]


@pytest.mark.parametrize(("kind", "inputs", "pairs"), FOUND, ids=lambda part: getattr(part, "__name__", ""))
def test_states_are_found_by_their_names_together(
    kind: Callable[[], nn.Module], inputs: dict[str, torch.Tensor], pairs: dict[str, str]
) -> None:
    torch.manual_seed(0)
    module = kind().eval()
    found = stateful(module, arguments_of(module, inputs), None)
    assert found.pairs == pairs
    plain = next(iter(inputs))
    assert [name for name in found.call.outputs if name not in pairs.values()] == [found.call.outputs[0]]
    assert list(found.feeds) == [plain, *pairs]


@pytest.mark.slow
def test_a_ring_goes_on_from_call_to_call(tmp_path: Path) -> None:
    """It was exported without its memory, and proven: every call began with an empty ring."""
    torch.manual_seed(0)
    module = Ring().eval()
    trueport.export(module, tmp_path / "out", inputs={"ids": ids(2, 5)})
    loaded, carried, given = trueport.load(tmp_path / "out"), None, dict[str, torch.Tensor]()
    for length in (3, 1, 6, 1, 2):
        tokens = ids(2, length)
        outputs, carried = loaded.step({"ids": tokens}, carried)
        with torch.no_grad():
            wanted = module(tokens, **given)
        torch.testing.assert_close(torch.as_tensor(outputs["y"]), wanted["y"], rtol=1e-4, atol=1e-5)
        given = {"ring": wanted["ring"], "count": wanted["count"]}


class Largest(nn.Module):
    """Keeps the two tokens that score highest; None is two zeros, and with many tokens nothing tells."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.score = nn.Embedding(30, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, ids: torch.Tensor, memory: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        tokens = self.words(ids)
        memory = tokens.new_zeros(ids.shape[0], 2, WIDTH) if memory is None else memory
        every = torch.cat([memory, tokens], 1)
        best = self.score(every)[..., 0].topk(2).indices.sort(-1).values
        kept = every.gather(1, best[..., None].expand(-1, -1, WIDTH))
        return {"y": tokens + kept.mean(1, keepdim=True), "memory": kept}


def test_a_first_state_that_few_tokens_tell_apart_is_zeros() -> None:
    """It began empty: with five tokens the two zeros are never among the largest, with one they are."""
    torch.manual_seed(0)
    module = Largest().eval()
    nn.init.constant_(module.score.bias, -20.0)
    described = describe(module, {"ids": ids(2, 5)})
    assert [pair.initial for pair in described.component.interface.state] == ["zeros"]
    assert described.component.interface.input("memory").shape == ("batch_size", 2, WIDTH)


class Forgets(nn.Module):
    """Its steps are not its whole: there is no length to be split."""

    def forward(self, x: torch.Tensor, last: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"y": x + last[:, None], "last_out": x.mean(1)}


@pytest.mark.slow
def test_calls_of_other_lengths_are_asked_too(tmp_path: Path) -> None:
    inputs = {"x": torch.randn(2, 5, 4), "last": torch.zeros(2, 4)}
    artifact = trueport.export(Forgets().eval(), tmp_path / "out", inputs=inputs, state={"last_out": "last"})
    (clause,) = [clause for clause in artifact.proof["clauses"] if clause["clause"] == "state"]
    assert {"4 calls in a row", "calls of other lengths", "calls of the smallest sizes"} <= {
        case["case"].partition(",")[0] for case in clause["cases"]
    }
