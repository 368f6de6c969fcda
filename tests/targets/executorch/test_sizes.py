"""Programs that are called with one size after another, the smallest first: what ExecuTorch 1.4.1 plans for one it keeps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.integrations.moe  # noqa: F401  (registers its operators)
from torch import nn

from trueport.patches import recurrences  # noqa: F401  (registers its operators)

pytest.importorskip("executorch")
CHANNELS = 64


class Repeated(nn.Module):
    """An operand made in the program, as large as the result at length 1 alone."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(x * y.exp())


class Smaller(nn.Module):
    """An operand that a constant axis keeps smaller than the result."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("row", torch.randn(1, 1, 6))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.exp(), torch.sigmoid(y.exp() * self.row)


class Longer(nn.Module):
    """An operand of fewer axes than the other, along one of which it is the longer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(CHANNELS, 6) + 1)
        self.register_buffer("middle", torch.rand(CHANNELS, 3, 6) + 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weight, z = self.weight, y[..., None].expand(-1, -1, -1, 6)
        ends = y * weight, weight + y, y - weight, weight - y, weight / y, y <= weight, torch.add(y, weight, alpha=2)
        return x.exp(), *ends, z * self.middle


class Largest(nn.Module):
    """The largest along an axis that stays open, which XNNPACK would take from windows of one size."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        several = x.unflatten(1, (4, 16)).exp()
        whole = several.transpose(1, 2)
        return *(part.max(dim=-1, keepdim=True).values for part in (several, whole)), several.max(2, keepdim=True)[0]


class Filled(nn.Module):
    """Memory that is made first and written to then."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        longer, same = x.new_empty(x.shape[0], CHANNELS + 1, x.shape[2]), torch.empty(x.shape)
        longer[:, :CHANNELS], longer[:, CHANNELS:] = x, x[:, :1]
        return longer, same.copy_(x * 2), y + 1


class Chosen(nn.Module):
    """Rows times the matrix of each one's expert: experts without rows, and one that has most."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(5, CHANNELS, 6))
        self.register_buffer("turned", torch.randn(5, 7, CHANNELS))

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows = x.transpose(1, 2).flatten(0, 1)
        experts, order = rows[:, 0].mul(4).long().clamp(0, 4).sort(stable=True)
        ends = (experts[None] <= torch.arange(5)[:, None]).sum(1).int()
        grouped = torch.ops.transformers.grouped_mm_fallback
        products = grouped(rows[order], self.weight, ends), grouped(rows[order], self.turned.transpose(1, 2), ends)
        return *products, grouped(products[0] @ self.weight[0].T, self.weight, ends.long()), y + 1


class Scanned(nn.Module):
    """Every recurrence, over (batch, length, 4 heads, 8 channels)."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = x.transpose(1, 2).unflatten(2, (4, 16))
        key, value = x[..., :8], x[..., 8:]
        state = y.reshape(-1, 4, 16, 1)[:, :, :8] * key.new_ones(6)
        beta, rate = key.sum(-1).sigmoid(), -torch.ones(8, 6)
        unit, decay = key / key.norm(dim=-1, keepdim=True), -beta.unsqueeze(-1)
        ruled = torch.ops.trueport.delta_rule(key, unit, value[..., :6], decay, beta, state)
        apart = torch.ops.trueport.delta_rule_by_channels(key, unit, value[..., :6], -value.abs(), beta, state)
        spaces = torch.ops.trueport.state_space(value, decay, key[..., :6], value[..., :6], state)
        line = key[:, :, 0], value[:, :, 0].abs(), rate, key[:, :, 1, :6], value[:, :, 1, :6], state[:, 0]
        return *ruled, *apart, *spaces, *torch.ops.trueport.state_space_by_channels(*line)


def program(module: nn.Module, backend: str) -> Any:
    from trueport.targets.executorch.lower import partitioner_of, to_program

    batch, length = torch.export.Dim("batch", min=1, max=4), torch.export.Dim("length", min=1, max=16)
    shapes = ({0: batch, 2: length}, {0: batch})
    exported = torch.export.export(module.eval(), inputs(2, 5), dynamic_shapes=shapes)
    return to_program({"forward": exported}, partitioner_of(backend))


def inputs(batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(batch, CHANNELS, length), torch.randn(batch, CHANNELS, 1)


@pytest.mark.parametrize("backend", ["xnnpack", "portable"])
@pytest.mark.parametrize("kind", [Repeated, Smaller, Longer, Largest, Filled, Chosen, Scanned])
def test_every_size_is_the_modules(kind: Callable[[], nn.Module], backend: str, tmp_path: Path):
    from executorch.runtime import Runtime

    torch.manual_seed(0)
    module, path = kind(), tmp_path / "model.pte"
    path.write_bytes(program(module, backend).buffer)
    loaded = Runtime.get().load_program(path)
    method = loaded.load_method("forward")
    for sizes in ((1, 1), (1, 2), (4, 16), (3, 2), (1, 7), (2, 1)):
        given = inputs(*sizes)
        wanted = module(*given)
        found = method.execute(list(given))
        torch.testing.assert_close(
            tuple(found), wanted if isinstance(wanted, tuple) else (wanted,), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize(("kind", "left"), [(Repeated, ["mul"]), (Smaller, [])])
def test_only_what_may_outgrow_an_operand_is_left_to_others(kind: Callable[[], nn.Module], left: list[str]):
    nodes = program(kind(), "xnnpack").exported_program("forward").graph.nodes
    assert [str(n.target).split(".")[1] for n in nodes if "aten." in str(n.target)] == left


def test_xnnpack_takes_the_products_of_experts():
    """Within a branch within a loop."""
    module = program(Chosen(), "xnnpack").exported_program("forward").graph_module
    inner = [graph for graph in module.modules() if isinstance(graph, torch.fx.GraphModule) and graph is not module]
    called = [str(node.target) for graph in inner for node in graph.graph.nodes]
    assert not [name for name in called if "bmm" in name]
    assert called.count("executorch_call_delegate") == 3


class Convolved(nn.Module):
    """Of (1, length) numbers, (1, 2, about half)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x[:, None])


def test_one_row_is_not_bounded_by_how_torch_would_convolve_it() -> None:
    """torch hands 20,480 numbers and more of one row to oneDNN, and so the program took no more."""
    from trueport.targets.executorch.lower import to_program

    lengths = ({1: torch.export.Dim.DYNAMIC(max=50_000)},)
    program = torch.export.export(Convolved().eval(), (torch.randn(1, 64),), dynamic_shapes=lengths)
    found = to_program({"forward": program}, None).exported_program("forward")
    assert [int(bounds.upper) for bounds in found.range_constraints.values()] == [50_000]
