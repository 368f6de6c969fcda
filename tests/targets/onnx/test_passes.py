"""Torch's passes in front of the conversion, spared: what comes out is what torch's own make."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn
from torch.onnx._internal.exporter import _fx_passes
from torch.onnx._internal.exporter._registration import ONNXRegistry

from tests import zoo
from trueport.quiet import quiet
from trueport.roles import components
from trueport.targets.onnx import decompose, passes, promote
from trueport.targets.onnx.lower import _convert, lower

DYNAMIC = torch.export.Dim.DYNAMIC


def several_dtypes(x: torch.Tensor, n: torch.Tensor) -> list[torch.Tensor]:
    """Integers with floats, booleans that are counted, scalars of another kind, sizes, halves, a view of a sum."""
    mask, half = n > 1.5, x.half()
    wide = (x + n).reshape(x.shape[0], -1, 1)
    return [
        x * n, n / 2, n**2.5, x**2, 1 - mask.float() * n, mask.sum(-1), n.mean(-1, dtype=torch.float32), half + x, half * n,
        torch.where(mask, x, half), torch.where(mask, 1.0, 0), torch.cat([x, n.float()], -1), x + x.shape[1],
        n.clamp(min=1.5), (x > n) | mask, x.double() + x, wide * n.sum(), torch.softmax(half, -1, dtype=torch.float32),
    ]  # fmt: skip


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)


def program(function: Callable[..., Any], *args: torch.Tensor) -> torch.export.ExportedProgram:
    dynamic = (tuple({0: DYNAMIC, 1: DYNAMIC} for _ in args),)
    return torch.export.export(Function(function), args, dynamic_shapes=dynamic, strict=False)


def told(module: torch.fx.GraphModule) -> list[tuple[Any, ...]]:
    """Operators, operands, dtypes and ranks, in order; torch numbers sizes that it derives anew."""
    rows = []
    for node in module.graph.nodes:
        value = node.meta.get("val")
        kind = (value.dtype, value.dim()) if isinstance(value, torch.Tensor) else type(value)
        rows.append(
            (node.op, str(node.target), str(node.args), str(node.kwargs), kind if node.op != "output" else None)
        )
    return rows


def test_promotion_is_torchs_own() -> None:
    args = torch.randn(2, 3), torch.arange(6).reshape(2, 3)
    decomposed = program(several_dtypes, *args).run_decompositions()
    ours, theirs = (copy.deepcopy(decomposed.graph_module) for _ in range(2))
    before = len(ours.graph.nodes)
    with quiet():
        promote.promoted(_fx_passes.insert_type_promotion_nodes, ours)
        _fx_passes.insert_type_promotion_nodes(theirs)
    assert told(ours) == told(theirs)
    assert len(ours.graph.nodes) > before + 8  # casts there were


def test_promotion_runs_only_the_nodes_that_change(monkeypatch: pytest.MonkeyPatch) -> None:
    found = program(lambda x: torch.relu(x * 2.0) + x, torch.randn(2, 3)).run_decompositions().graph_module
    ran: list[str] = []
    original = torch.fx.Interpreter.call_function
    monkeypatch.setattr(
        torch.fx.Interpreter, "call_function", lambda *a, **k: ran.append(str(a[1])) or original(*a, **k)
    )
    with quiet():
        promote.promoted(_fx_passes.insert_type_promotion_nodes, found)
    assert "aten.relu.default" not in ran


@pytest.mark.parametrize(
    "absent", [(), ("decompose_with_registry", "insert_type_promotion_nodes")], ids=["here", "moved"]
)
def test_torch_is_as_it_was_afterwards(absent: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in absent:
        monkeypatch.delattr(_fx_passes, name)
    before = dict(vars(_fx_passes))
    with pytest.raises(KeyError), passes.spared_passes():
        names = [patch.path.rpartition(".")[2] for patch in passes.PASSES]
        changed = [name for name in names if vars(_fx_passes).get(name) is not before.get(name)]
        assert len(names) == 2 and changed == ([] if absent else names)
        raise KeyError
    assert dict(vars(_fx_passes)) == before


def test_half_that_float_is_added_to_stays_half(tmp_path: Path) -> None:
    """In place: half += float32 is rounded at once, and half + float32 is not."""
    found = program(lambda x, y: (x.half() * 1).add_(y) * 2, torch.randn(2, 3), torch.randn(2, 3))
    captured = SimpleNamespace(program=found, name="function")
    model = _convert(captured, 23)
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT16
    ir.save(model, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    x, y = torch.full((2, 3), 2048.0), torch.full((2, 3), 0.75)
    (result,) = session.run(
        None, dict(zip([i.name for i in session.get_inputs()], (x.numpy(), y.numpy()), strict=True))
    )
    assert result.dtype == numpy.float16
    assert (result == found.module()(x, y).numpy()).all()


def decomposed(found: torch.export.ExportedProgram) -> torch.export.ExportedProgram | None:
    """Without torch's own way; None where that is taken."""
    with passes.spared_passes():
        registry = ONNXRegistry.from_torchlib()
    return decompose.decomposed(lambda program, registry: None, found, registry)  # type: ignore[arg-type,return-value]


def test_operators_without_a_form_are_broken_up_as_torch_does() -> None:
    found = program(lambda x: torch.rsub(x, 2.0).square().softmax(-1) + x.T.sum(), torch.randn(2, 3))
    ours, theirs = decomposed(found), _fx_passes.decompose_with_registry(found, ONNXRegistry.from_torchlib())
    assert ours is not None and "rsub" not in ours.graph_module.code
    assert [row for row in told(ours.graph_module) if row[0] != "output"] == told(theirs.graph_module)[:-1]


def normed(x: torch.Tensor) -> torch.Tensor:
    """As a router of experts divides its weights by their sum."""
    values, _ = x.topk(2)
    values /= values.sum(-1, keepdim=True)
    return values


def seen_through_a_view(x: torch.Tensor) -> torch.Tensor:
    values, _ = x.topk(2)
    seen = values.transpose(0, 1)
    values /= 2.0
    return seen


def of_a_view(x: torch.Tensor) -> torch.Tensor:
    doubled = x * 2
    doubled[:, 1:].mul_(3.0)
    return doubled


def of_a_product(x: torch.Tensor) -> torch.Tensor:
    scores = torch.einsum("ij,kj->ik", x, x)
    scores += x.matmul(x.new_ones(x.shape[1], 1)).add_(1.0)
    return scores


def of_a_view_alone(x: torch.Tensor) -> torch.Tensor:
    """As Funnel masks the positions that it has shifted."""
    part = (x * 2).reshape(-1)[1:].unsqueeze(0)
    part *= 3.0
    return part


def of_a_view_of_what_is_read(x: torch.Tensor) -> torch.Tensor:
    x = x.clone()
    part = x.transpose(0, 1)
    part.add_(1.0)
    return x * 2


def given_out_too(x: torch.Tensor) -> list[torch.Tensor]:
    values = x * 2
    detached = values.detach_()
    detached += 1.0
    return [values, detached]


@pytest.mark.parametrize(
    ("function", "spared"),
    [
        (normed, True), (of_a_product, True), (of_a_view_alone, True), (seen_through_a_view, False), (of_a_view, False),
        (of_a_view_of_what_is_read, False), (given_out_too, False),
    ],
)  # fmt: skip
def test_writes_are_renamed_where_nobody_sees_them(function: Callable[..., Any], spared: bool, tmp_path: Path) -> None:
    x = torch.randn(2, 3)
    found = program(function, x)
    assert (decomposed(found) is not None) == spared
    ir.save(_convert(SimpleNamespace(program=found, name="function"), 23), tmp_path / "model.onnx")  # type: ignore[arg-type]
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    wanted = function(x.clone())
    results = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for result, other in zip(results, wanted if isinstance(wanted, list) else [wanted], strict=True):
        torch.testing.assert_close(torch.from_numpy(result), other)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "t5", "falcon", "deberta_v2"])
def test_graphs_are_those_of_torchs_promotion(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Byte by byte, of every component."""
    from trueport.capture import capture

    model = zoo.build(name)
    with quiet():
        parts = [capture(part) for part in components(model)]
        ours = [lower(part).model for part in parts]
        monkeypatch.setattr(passes, "PASSES", passes.PASSES[:1])  # without insert_type_promotion_nodes
        theirs = [lower(part).model for part in parts]
    texts = [[ir.to_proto(model).SerializeToString(deterministic=True) for model in found] for found in (ours, theirs)]
    assert texts[0] == texts[1]


def test_forms_of_torchlibs_functions_are_in_their_domains() -> None:
    from onnxscript._internal.values import TracedOnnxFunction
    from onnxscript.function_libs.torch_lib import ops, registration

    assert ops
    entries = [entry for _, entry in registration.default_registry.items()]
    functions = [
        f for entry in entries for f in (*entry.overloads, *entry.complex) if isinstance(f, TracedOnnxFunction)
    ]
    whole = [function.function_ir for function in functions[:20]]
    domains = [function.function_ir.domain for function in functions]
    with passes.spared_passes():
        assert [function.function_ir.domain for function in functions] == domains
        late = [function.function_ir for function in functions[:20]]
        assert [form.name for form in late] == [form.name for form in whole]
    assert len(functions) > 400 and type(functions[0].function_ir) is type(whole[0])
