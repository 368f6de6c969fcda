"""Operators broken up one by one: into what torch breaks them up into, and nothing where it has to see the whole."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

pytest.importorskip("executorch")

DYNAMIC = torch.export.Dim.DYNAMIC
_aten = torch.ops.aten


@functools.cache
def table() -> dict[Any, Any]:
    """What ExecuTorch breaks up, but for what XNNPACK takes whole."""
    from executorch.exir.tracer import _default_decomposition_table

    return {way: by for way, by in _default_decomposition_table().items() if way != _aten.linear.default}


class Block(nn.Module):
    """Attention as transformers writes it, a norm and a feed-forward, over x (batch, sequence, 8) and a mask of ones."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.inner = nn.Linear(8, 24)
        self.outer = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        rows, length, _ = x.shape
        q, k, v = self.inner(self.norm(x)).view(rows, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        scores = torch.matmul(q, k.transpose(-1, -2)) * 0.5
        seen = mask[:, None, None, :].bool() & torch.ones(length, length, dtype=torch.bool).tril()
        weights = scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1)
        mixed = torch.matmul(weights, v).transpose(1, 2).reshape(-1, 8)
        y = nn.functional.silu(self.outer(mixed)).reshape(rows, length, 8)
        return x + nn.functional.dropout(y, training=False), mask, weights.flatten(1)


class Own(nn.Module):
    """Whose ``forward`` is a function of x (3, 4)."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("scale", torch.arange(4.0))
        self.register_buffer("kept", torch.zeros(3, 4))

    def forward(self, x: torch.Tensor) -> Any:
        return self.function(self, x)


def program(module: nn.Module, *args: torch.Tensor, dynamic: Any = None) -> ExportedProgram:
    return captured(module, *args, dynamic=dynamic).run_decompositions({})


def captured(module: nn.Module, *args: torch.Tensor, dynamic: Any = None) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(module.eval(), args, dynamic_shapes=dynamic, strict=False)


def block() -> ExportedProgram:
    torch.manual_seed(0)
    dynamic = ({0: DYNAMIC, 1: DYNAMIC}, {0: DYNAMIC, 1: DYNAMIC})
    return program(Block(), torch.randn(2, 5, 8), torch.ones(2, 5, dtype=torch.long), dynamic=dynamic)


@functools.cache
def broken_up() -> ExportedProgram:
    """The block, decomposed."""
    from trueport.targets.pieces import decomposed

    found = decomposed(block(), table())
    assert found is not None
    return found


def operators(found: ExportedProgram) -> list[tuple[str, Any]]:
    """Operators on tensors with the layouts of their results, in order."""
    from trueport.targets.pieces import _layout

    return [
        (str(node.target), _layout(node.meta["val"]))
        for node in found.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and isinstance(node.meta.get("val"), torch.Tensor)
    ]


@pytest.mark.slow
def test_they_are_the_operators_that_torch_makes() -> None:
    found, wanted = broken_up(), block().run_decompositions(table())
    names = [name for name, _ in operators(found)]
    assert operators(found) == operators(wanted)
    assert {"aten.linear.default", "aten.bmm.default", "aten._softmax.default"} < set(names)
    assert not {"aten.matmul.default", "aten.softmax.int", "aten.dropout.default", "aten.reshape.default"} & set(names)
    specs = [[(spec.kind, spec.target) for spec in made.graph_signature.input_specs] for made in (found, wanted)]
    assert specs[0] == specs[1]


@pytest.mark.slow
def test_every_node_tells_where_it_comes_from() -> None:
    called = [node for node in broken_up().graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
    assert all("in forward" in node.meta["stack_trace"] for node in called if "sym_" not in str(node.target))


@pytest.mark.slow
@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (3, 2), (0, 3)])
def test_it_computes_what_the_module_does(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    module = Block().eval()
    x, mask = torch.randn(*shape, 8), torch.randint(0, 2, shape)
    with torch.no_grad():
        results = zip(broken_up().module()(x, mask), module(x, mask), strict=True)
        assert all(torch.allclose(result, other, atol=1e-6) for result, other in results)


GIVEN_OUT: dict[str, Callable[[Own, torch.Tensor], Any]] = {
    "an input as it is": lambda m, x: (x.to(torch.float32), x * 2),
    "one value twice": lambda m, x: (y := x.reshape(12), y),
    "a buffer": lambda m, x: (m.scale.to(torch.float32), x @ m.scale),
    "a constant": lambda m, x: x.matmul(torch.tensor([1.0, 2.0, 3.0, 4.0])) + torch.tensor(2.0),
    "a number": lambda m, x: (x.softmax(-1), 7, None),
    "a view of a view": lambda m, x: x.transpose(0, 1).reshape(-1)[2:].unflatten(0, (5, 2)),
    "written to a buffer": lambda m, x: m.kept.copy_(x.softmax(-1)) + 1,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", GIVEN_OUT)
def test_what_is_given_out(name: str) -> None:
    from trueport.targets.pieces import decomposed

    x = torch.randn(3, 4)
    found = decomposed(program(Own(GIVEN_OUT[name]), x), table())
    wanted = program(Own(GIVEN_OUT[name]), x).run_decompositions(table())
    assert found is not None
    assert operators(found) == operators(wanted)
    specs = [[(spec.kind, spec.target) for spec in made.graph_signature.output_specs] for made in (found, wanted)]
    assert specs[0] == specs[1]
    results, others = (pytree.tree_leaves(run(x)) for run in (found.module(), Own(GIVEN_OUT[name])))
    assert len(results) == len(others)
    for result, other in zip(results, others, strict=True):
        assert torch.equal(result, other) if isinstance(other, torch.Tensor) else result == other


WHOLE: dict[str, Callable[[Own, torch.Tensor], Any]] = {
    "a branch": lambda m, x: torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,)),
    "pieces that write": lambda m, x: nn.functional.cosine_similarity(x, x + 1) * 2,
    "pieces that write to views": lambda m, x: nn.functional.pad(x[None], (1, 1), mode="circular"),
    "pieces that may write": lambda m, x: nn.functional.instance_norm(x[None]) * 2,
    "shapes that values decide on": lambda m, x: x.nonzero().softmax(-1, dtype=torch.float32),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_has_to_be_seen_whole_is_left_to_torch(name: str) -> None:
    from trueport.targets.pieces import decomposed

    before = program(Own(WHOLE[name]), torch.randn(3, 4))
    code = before.graph_module.code
    assert decomposed(before, table()) is None
    assert before.graph_module.code == code


def _turned(m: Own, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """A loop over rows with a branch within, composites in both."""
    from torch._higher_order_ops.cond import cond_op
    from torch._higher_order_ops.scan import scan_op

    def either(row: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        above, below = lambda r, s: (r.softmax(-1) * s,), lambda r, s: (nn.functional.softplus(r) - s,)
        return nn.functional.layer_norm(cond_op(row.sum() > 0, above, below, (row, scale))[0], (4,))

    def step(kept: torch.Tensor, row: torch.Tensor, scale: torch.Tensor) -> list[torch.Tensor]:
        return [nn.functional.softplus(kept) + row, either(row, scale)]

    last, rows = scan_op(step, [x[0] * 0], [x], (m.scale,))
    return last.softmax(-1), rows.t()


def test_branches_and_loops_are_broken_up_apart() -> None:
    from trueport.targets.pieces import bodies, decomposed

    module, x = Own(_turned), torch.tensor([[1.0, 2, 3, -1], [-1, -2, 0, 1], [0, 1, 2, -2]])
    found, wanted = decomposed(program(module, x), table(), within=True), program(module, x).run_decompositions(table())
    assert found is not None and decomposed(program(module, x), table()) is None

    def counted(made: ExportedProgram) -> list[list[str]]:
        graphs = made.graph_module, *bodies(made.graph_module)
        return [sorted(str(n.target) for n in each.graph.nodes if n.op == "call_function") for each in graphs]

    assert len(counted(found)) == 4
    assert counted(found) == counted(wanted)
    for given in (x, -x, x.roll(1, 0)):
        torch.testing.assert_close(found.module()(given), module(given))


def test_weights_that_are_several_tensors_are_left_to_torch() -> None:
    """Int8 in a class of torchao's: as it is, no kernel runs it."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_

    from trueport.targets.pieces import decomposed

    module = nn.Sequential(nn.Linear(64, 64)).eval()
    quantize_(module, Int8DynamicActivationIntxWeightConfig())
    assert decomposed(captured(module, torch.randn(3, 64)), table()) is None


def test_writes_are_left_to_torch() -> None:
    from trueport.targets.pieces import decomposed

    assert decomposed(captured(Own(lambda m, x: (x * 2).add_(1)), torch.randn(3, 4)), table()) is None
