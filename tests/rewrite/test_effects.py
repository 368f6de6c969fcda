"""What looking at a module leaves behind: nothing."""

from __future__ import annotations

import random
import threading
from collections import deque
from pathlib import Path

import pytest
import torch
from torch import nn

import trueport
from trueport.diagnosis.conduct import conduct
from trueport.errors import SourceError
from trueport.resident import resident
from trueport.rewrite import watch
from trueport.rewrite.watch import preserved
from trueport.roles.kept import _untouched


class Untidy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.seen, self.counts, self.last = [1], {"calls": 0}, deque([2], maxlen=3)
        self.plain, self.weight = torch.zeros(2), nn.Parameter(torch.ones(2))
        self.words = nn.Embedding(4, 2, max_norm=0.1)
        self.holder = type("Holder", (), {})()
        self.holder.value = 5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.seen.append(x)
        self.counts["calls"] += 1
        self.last.append(x)
        self.plain += 1
        self.holder.value, self.holder.other = 6, x
        with torch.no_grad():
            self.weight.mul_(2)
        return x + random.random() + self.words(torch.tensor([0, 1])).sum()


def test_everything_that_a_module_holds_is_as_it_was() -> None:
    model = Untidy().eval()
    words, state = model.words.weight.detach().clone(), random.getstate()
    with preserved(model), torch.no_grad():
        model(torch.ones(2))
    assert (model.seen, model.counts, list(model.last)) == ([1], {"calls": 0}, [2])
    assert model.plain.tolist() == [0, 0] and model.weight.tolist() == [1, 1]
    assert torch.equal(model.words.weight, words)
    assert vars(model.holder) == {"value": 5} and random.getstate() == state


@pytest.mark.skipif(
    not Path("/proc/self/statm").exists(), reason="the system does not tell what a process has in memory"
)
def test_empty_caches_take_no_memory_but_where_they_are_written() -> None:
    model = nn.Module()
    model.register_buffer("cache", _untouched((2**20, 2**6), torch.float32))
    before = resident()[0]
    with preserved(model):
        model.cache[12345] = 1
        model.cache[-1] = 2
    assert resident()[0] - before < 2**24 < 2**20 * 2**6 * 4
    assert not model.cache.any()


def test_parameters_too_large_to_be_kept_are_refused_when_they_are_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "COPIED", 4)
    model = Untidy().eval()
    with pytest.raises(SourceError, match="writes to its parameters"), preserved(model), torch.no_grad():
        model(torch.ones(2))


def test_a_module_made_in_inference_mode_is_looked_at() -> None:
    with torch.inference_mode():
        model = nn.BatchNorm1d(3).eval()
    assert conduct(model, (torch.ones(2, 3),)) == []


@pytest.mark.slow
def test_two_threads_that_look_leave_torch_as_it_was() -> None:
    setter, flag = nn.Module.__setattr__, torch.compiler._is_exporting_flag
    model = nn.Linear(2, 2).eval()

    def look() -> None:
        for _ in range(20):
            conduct(model, (torch.ones(2, 2),))
            with trueport.exportable(model, inputs=(torch.ones(2, 2),)):
                pass

    threads = [threading.Thread(target=look) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert nn.Module.__setattr__ is setter and torch.compiler._is_exporting_flag == flag
