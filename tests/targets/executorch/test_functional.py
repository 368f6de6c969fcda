"""Writes in place taken out without a second trace: only where they are plain to see, and to the same program."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

pytest.importorskip("executorch")

DYNAMIC = torch.export.Dim.DYNAMIC


class Cache(nn.Module):
    """Two buffers, of which the second is written first, and a sum in place."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("keys", torch.zeros(4, 8))
        self.register_buffer("values", torch.zeros(4, 8))
        self.register_buffer("scale", torch.ones(8))
        self.inner = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, place: torch.Tensor) -> list[torch.Tensor]:
        values = self.values.index_put_((place,), self.inner(x))
        keys = self.keys.index_put_((place,), x)
        scores = keys * values
        scores += 1
        return [scores * 2, torch.tanh(x) * self.scale]


class Two(nn.Module):
    """Whose ``forward`` is a function of itself and x (2, 8)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        whole = torch.arange(32.0).view(4, 8)
        self.register_buffer("one", whole[:2])
        self.register_buffer("other", whole[:2].view(2, 8))
        self.register_buffer("own", torch.zeros(2, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.function(self, x)


def program(module: nn.Module, *args: torch.Tensor, dynamic: Any = None) -> torch.export.ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), args, dynamic_shapes=dynamic, strict=False)


def cached() -> torch.export.ExportedProgram:
    dynamic = ({0: DYNAMIC}, {0: DYNAMIC})
    return program(Cache(), torch.randn(3, 8), torch.tensor([0, 2, 1]), dynamic=dynamic)


def writes(found: torch.export.ExportedProgram) -> bool:
    targets = [node.target for node in found.graph.nodes]
    return any(isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable for target in targets)


def test_it_is_the_program_that_torch_makes() -> None:
    from trueport.targets.executorch.functional import functional

    torch.manual_seed(0)
    found, wanted = functional(cached()), cached().run_decompositions({})
    assert found is not None
    specs = [[(spec.kind, spec.target) for spec in made.graph_signature.output_specs] for made in (found, wanted)]
    assert specs[0] == specs[1] and [target for _, target in specs[0]][:2] == ["keys", "values"]
    x, place = torch.randn(2, 8), torch.tensor([3, 1])
    for result, other in zip(found.module()(x, place), Cache()(x, place), strict=True):
        assert result.shape == other.shape
    assert not writes(found)


def test_what_is_written_stays_written() -> None:
    from trueport.targets.executorch.functional import functional

    module = Cache()
    found = functional(program(module, torch.randn(2, 8), torch.tensor([0, 2])))
    assert found is not None
    run = found.module()
    x, place = torch.randn(2, 8), torch.tensor([3, 1])
    for _ in range(2):
        wanted = module(x, place)
        for result, other in zip(run(x, place), wanted, strict=True):
            assert torch.equal(result, other)
        x = x + 1
        place = place - 1


SEEN_ELSEWHERE: dict[str, Callable[[Two, torch.Tensor], torch.Tensor]] = {
    "read before": lambda m, x: x + m.own + m.own.add_(x),
    "written twice": lambda m, x: m.own.add_(x).mul_(2),
    "through a view": lambda m, x: m.own[0].add_(x[0]) + m.own[0],
    "two names": lambda m, x: m.one.add_(x) + m.other,
    "an input": lambda m, x: x.add_(1),
    "a value that is viewed": lambda m, x: (y := x * 2).view(-1)[:8] + y.add_(1)[0],
    "half and float": lambda m, x: (x.to(torch.float16) * 1).add_(x),
    "another dtype": lambda m, x: (x.bool().int()).mul_(2) + x.to(torch.int32).bitwise_and_(1),
}


@pytest.mark.parametrize("name", SEEN_ELSEWHERE)
def test_what_others_see_is_left_to_torch(name: str) -> None:
    from trueport.targets.executorch.functional import functional

    before = program(Two(SEEN_ELSEWHERE[name]), torch.randn(2, 8))
    code = before.graph_module.code
    assert writes(before)
    assert functional(before) is None
    assert before.graph_module.code == code


@pytest.mark.slow
def test_the_bytes_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    from trueport.targets.executorch import functional, grouping, passes
    from trueport.targets.executorch.lower import partitioner_of, to_program

    def written() -> bytes:
        torch.manual_seed(0)
        return bytes(to_program({"forward": cached()}, partitioner_of("xnnpack")).buffer)

    short = written()
    monkeypatch.setattr(functional, "functional", lambda _: None)
    monkeypatch.setattr(functional, "decomposed", lambda *_, **__: None)
    monkeypatch.setattr(passes, "SHAPES", [])
    monkeypatch.setattr(grouping, "PATCHES", ())
    assert written() == short


@pytest.mark.slow
def test_weights_that_are_trained_on_leave_no_trace() -> None:
    from trueport.targets.executorch.lower import partitioner_of, to_program

    written = []
    for trained in (True, False):
        torch.manual_seed(0)
        module = Cache().requires_grad_(trained)
        exported = torch.export.export(module.eval(), (torch.randn(2, 8), torch.tensor([0, 2])), strict=False)
        written.append(bytes(to_program({"forward": exported}, partitioner_of("xnnpack")).buffer))
        assert module.inner.weight.requires_grad is trained
    assert written[0] == written[1]
