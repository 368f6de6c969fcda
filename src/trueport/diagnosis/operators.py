"""Operators of a captured program that a target has no form for, each with the line that calls it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from trueport.diagnosis.conduct import Finding
from trueport.diagnosis.mends import OTHERWISE, mend_of
from trueport.errors import LoweringError

if TYPE_CHECKING:
    from torch.export import ExportedProgram


def lacking(program: ExportedProgram, target: str, *, backend: str = "xnnpack") -> list[Finding]:
    """What ``target`` cannot take of a program; empty where it takes all.

    Args:
        program: as torch.export gave it; changed in place for ``executorch``, whose dimensions are to be bounded.
        target: ``onnx`` or ``executorch``.
        backend: ExecuTorch's kernels.
    """
    return _onnx(program) if target == "onnx" else _executorch(program, backend)


def _onnx(program: ExportedProgram) -> list[Finding]:
    from torch.onnx._internal.exporter import _decomp, _registration

    from trueport.targets.onnx.passes import spared_passes
    from trueport.targets.onnx.translations import translations

    with spared_passes():
        registry = _registration.ONNXRegistry.from_torchlib()
    known = {*_decomp.get_onnx_implemented_overloads(registry), *translations()}
    table = _decomp.create_onnx_friendly_decomposition_table(known)
    if all(target in known for _, target in _calls(program)):
        return []
    decomposed = program.run_decompositions(table)
    return _findings(
        ((node, _origin(node, target)) for node, target in _calls(decomposed) if target not in known),
        "ONNX has no form of",
    )


def _origin(node: torch.fx.Node, target: Any) -> str:
    """The operator that the module called, of which a decomposition may have left the one that is lacking."""
    return str(node.meta.get("original_aten") or target)


def _executorch(program: ExportedProgram, backend: str) -> list[Finding]:
    from executorch.extension.pybindings.portable_lib import _get_operator_names

    from trueport.targets.executorch.lower import partitioner_of, to_program

    calls = [(node, target) for node, target in _calls(program)]
    try:
        lowered = to_program({"forward": program}, partitioner_of(backend))
    except LoweringError as error:
        named = [(node, str(target)) for node, target in calls if _is_named(target, error.problem)]
        found = _findings(named, "ExecuTorch cannot lower")
        return found or [Finding("operator", "", error.problem, error.remedy or OTHERWISE)]
    kernels = set(_get_operator_names())
    lacked = []
    for node in lowered.exported_program("forward").graph.nodes:
        schema = getattr(node.target, "_schema", None) or getattr(getattr(node.target, "_op", None), "_schema", None)
        if node.op != "call_function" or schema is None:
            continue
        name = f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name
        if name not in kernels:
            lacked.append((node, name))
    return _findings(lacked, "ExecuTorch has no kernel for")


def _calls(program: ExportedProgram) -> list[tuple[torch.fx.Node, Any]]:
    """Calls of operators, those in branches and loops among them; torch's own assertions left out."""
    return [
        (node, node.target)
        for module in program.graph_module.modules()
        if isinstance(module, torch.fx.GraphModule)
        for node in module.graph.nodes
        if isinstance(node.target, torch._ops.OpOverload) and "_assert" not in str(node.target)
    ]


def _is_named(target: Any, problem: str) -> bool:
    """Whether an error speaks of an operator, as ``aten::name`` or ``aten.name``."""
    name = target._schema.name
    spellings = (name, name.replace("::", "."), str(target), f"{name.replace('::', '_')}_default")
    return any(spelling in problem for spelling in spellings)


def _findings(calls: Iterable[tuple[torch.fx.Node, str]], words: str) -> list[Finding]:
    """One for each operator and line."""
    from trueport.diagnosis.divergence.program_flow import origin_of_node

    found: dict[tuple[str, str], Finding] = {}
    for node, name in calls:
        line = origin_of_node(node).line.partition(" (")[0]
        found.setdefault((name, line), Finding("operator", line, f"{words} {name}", mend_of(name)))
    return list(found.values())
