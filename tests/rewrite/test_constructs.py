"""Each construct, exported and run on inputs that take every branch: torch, ONNX Runtime, ExecuTorch."""

from __future__ import annotations

import copy
import io
import warnings
from functools import cache
from typing import Any

import onnxruntime
import pytest
import torch
from torch.utils import _pytree as pytree

import trueport
from tests.rewrite.constructs import CASES, Case
from trueport.rewrite import find
from trueport.targets.onnx.passes import spared_passes

FAST = ("EarlyReturn", "Elif", "While", "Break", "Accumulator", "RangeOfItem", "InPlace", "Clamp")
DELEGATED = ("EarlyReturn", "Break", "ReturnInLoop", "Submodule", "Clamp", "Helper", "NormInBranch", "GuardedDivision")
"""Where XNNPACK takes parts of a branch, or of what lies between two."""
SLOW = pytest.mark.slow
OPERATORS = {
    "bool()": {"Cast"}, "float()": {"Cast"}, "while": {"Loop"}, "for": {"Scan", "Loop"}, "list comprehension": {"Scan"},
}  # fmt: skip


def group(case: Case) -> pytest.MarkDecorator:
    """All tests of a construct on one worker: its program is traced once."""
    return pytest.mark.xdist_group(f"construct {case}")


every_case = pytest.mark.parametrize("case", [pytest.param(case, id=str(case), marks=group(case)) for case in CASES])
few_are_fast = pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=str(case), marks=(group(case), *(() if str(case) in FAST else (SLOW,)))) for case in CASES],
)


def built(case: Case) -> torch.nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return case.module().eval()


@cache
def program(case: Case, dynamic: bool = True) -> torch.export.ExportedProgram:
    """Traced at one input only, the first."""
    model, sample = built(case), (case.inputs[0].clone(),)
    axes = ({0: torch.export.Dim.DYNAMIC},) if dynamic else None
    with trueport.exportable(model, inputs=sample), torch.no_grad():
        return torch.export.export(model, sample, dynamic_shapes=axes)


def equal(got: Any, wanted: Any) -> None:
    ours, theirs = pytree.tree_leaves(got), pytree.tree_leaves(wanted)
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(torch.as_tensor(one), torch.as_tensor(other), equal_nan=True, rtol=1e-5, atol=1e-5)


@few_are_fast
@torch.no_grad()
def test_it_is_found_by_running_one_sample(case: Case) -> None:
    found = find(built(case), (case.inputs[0].clone(),))
    assert not found.refusals
    assert case.construct in {kind for rewrite in found.rewrites for _, kind in rewrite.constructs}


@every_case
@torch.no_grad()
def test_rewritten_it_still_computes_the_same_in_python(case: Case) -> None:
    model = built(case)
    wanted = [model(x.clone()) for x in case.inputs]
    with trueport.exportable(model, inputs=(case.inputs[0].clone(),)) as context:
        assert context.report.rewrites
        equal([model(x.clone()) for x in case.inputs], wanted)


@few_are_fast
@torch.no_grad()
def test_the_program_takes_every_branch(case: Case) -> None:
    model, module = built(case), program(case).module()
    for x in case.inputs:
        equal(module(x.clone()), model(x.clone()))


@few_are_fast
@torch.no_grad()
def test_onnx_takes_every_branch(case: Case) -> None:
    with warnings.catch_warnings(), spared_passes():
        warnings.simplefilter("ignore")
        onnx_program = torch.onnx.export(program(case), dynamo=True, verbose=False)
    assert onnx_program is not None
    kinds = {node.op_type for node in onnx_program.model.graph.all_nodes()}
    kinds |= {node.op_type for function in onnx_program.model.functions.values() for node in function}
    if case.construct != "assert":
        assert kinds & OPERATORS.get(case.construct, {"If"})
    buffer = io.BytesIO()
    onnx_program.save(buffer)
    session = onnxruntime.InferenceSession(buffer.getvalue())
    model = built(case)
    for x in case.inputs:
        equal(
            [torch.from_numpy(value) for value in session.run(None, {session.get_inputs()[0].name: x.numpy()})],
            model(x),
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "backend"),
    [
        pytest.param(case, backend, id=f"{case}-{backend}", marks=group(case))
        for backend in ("portable", "xnnpack")
        for case in CASES
        if backend == "portable" or str(case) in DELEGATED
    ],
)
@torch.no_grad()
def test_executorch_takes_every_branch(case: Case, backend: str) -> None:
    pytest.importorskip("executorch.exir")
    from executorch.runtime import Runtime

    from trueport.errors import LoweringError
    from trueport.targets.executorch.lower import partitioner_of, to_program

    inputs = [x for x in case.inputs if x.shape == case.inputs[0].shape]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if case.executorch:
            with pytest.raises(LoweringError):
                to_program({"forward": program(case, dynamic=False)}, partitioner_of(backend))
            return
        # The lowering changes the program, which the other tests share.
        buffer = to_program({"forward": copy.deepcopy(program(case, dynamic=False))}, partitioner_of(backend)).buffer
    method = Runtime.get().load_program(buffer).load_method("forward")
    model = built(case)
    for x in inputs:
        equal(method.execute([x.clone()]), model(x.clone()))
