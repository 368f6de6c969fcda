"""From captured programs to one ``.pte``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trueport.capture import Captured
from trueport.errors import LoweringError
from trueport.progress import Counted, Meter
from trueport.targets import Lowered
from trueport.targets.executorch.external import LARGEST_PROGRAM, STEM, put_beside, weights_size
from trueport.targets.executorch.memory import check_arena, measure
from trueport.targets.executorch.rewrites import prepared

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager, ExecutorchProgramManager

    from trueport.targets.executorch.partition import Partitioner

BACKENDS = ("xnnpack", "portable")
"""Kernels to run on: XNNPACK's where it has one, or ExecuTorch's portable ones alone."""
DEFAULT_BACKEND = "xnnpack"


def lower(captured: Sequence[Captured], path: Path, file: str, options: Mapping[str, Any]) -> dict[str, Lowered]:
    """Write ``path``, one method for each captured program; by component name.

    Args:
        captured: programs whose every dimension is bounded.
        path: the ``.pte`` to write.
        file: the same, relative to the artefact's root.
        options: ``backend``, one of BACKENDS; ``max_arena``, bytes; ``max_pte``, bytes of weights past which they lie
            in a ``.ptd`` beside it; ``kernels``, names of XNNPACK's kernels to use (partition.KERNELS).

    Raises:
        LoweringError: an operator has no kernel, or the memory to plan is more than ``max_arena``.
    """
    backend = options.get("backend") or DEFAULT_BACKEND
    if backend not in BACKENDS:
        raise LoweringError(f"There is no backend {backend}", f"Choose from {', '.join(BACKENDS)}.")
    partitioner = partitioner_of(backend, options.get("kernels"))
    programs = {part.stem: part.program for part in captured}
    most = LARGEST_PROGRAM if options.get("max_pte") is None else options["max_pte"]
    beside = weights_size(programs.values()) > most
    program = to_program(programs, partitioner, beside=beside)
    plans = {part.stem: measure(program, part.stem, part.interface) for part in captured}
    check_arena(plans, options.get("max_arena"))
    _write(program, path, options.get("meter") or Meter())
    data = {"data": file.rpartition("/")[0] + f"/{STEM}.ptd"} if beside else {}
    return {
        part.name: Lowered(
            file,
            part.interface,
            depth=len(part.program.graph.nodes),
            guards=part.guards,
            extra={
                "method": part.stem,
                "backend": backend,
                "kernels": sorted(partitioner.taken) if partitioner else [],
                "memory": plans[part.stem].to_json(),
                **data,
            },
        )
        for part in captured
    }


def _write(program: ExecutorchProgramManager, path: Path, meter: Meter) -> None:
    """Write the program, and the weights that lie beside it."""
    # Its own writing functions tell nobody how far they are.
    data: Mapping[str, Any] = program._tensor_data or {}
    files = {path: program._pte_data} | {path.parent / f"{name}.ptd": cord for name, cord in data.items()}
    meter.start("weights", sum(len(cord) for cord in files.values()))
    for file, cord in files.items():
        with file.open("wb") as stream:
            cord.write_to_file(Counted(stream, meter.add))  # type: ignore[arg-type]


def to_program(
    programs: Mapping[str, torch.export.ExportedProgram], partitioner: Partitioner | None, *, beside: bool = False
) -> ExecutorchProgramManager:
    """Edge dialect, partitioned and planned.

    Args:
        programs: by method name.
        partitioner: what XNNPACK runs; None for the portable kernels alone.
        beside: whether the weights lie in a file of their own.
    """
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge_transform_and_lower

    from trueport.targets.executorch.passes import only_needed
    from trueport.targets.executorch.planning import PlanningPass
    from trueport.targets.executorch.sharing import shared_weights

    stripped = {name: prepared(program) for name, program in programs.items()}
    if beside:
        put_beside(stripped)
    try:
        with only_needed(), shared_weights():
            edge = to_edge_transform_and_lower(
                stripped,
                partitioner=[] if partitioner is None else [partitioner],
                # The verifier takes len() of every tensor (exir/verification/arg_validator.py): a guard that makes the
                # first dynamic axis a constant.
                compile_config=EdgeCompileConfig(_check_ir_validity=False),
            )
        _refuse_written(edge, programs)
        return edge.to_executorch(
            ExecutorchBackendConfig(
                # Together with elided views, writes in place give wrong values (Gemma 3 under the portable kernels).
                run_reinplace_pass=True,
                remove_view_copy=False,
                memory_planning_pass=PlanningPass(),
                external_constants=(lambda node: STEM) if beside else False,
            )
        )
    except LoweringError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        raise LoweringError(f"ExecuTorch cannot lower {', '.join(programs)}: {reason}") from error


def _refuse_written(edge: EdgeProgramManager, names: Iterable[str]) -> None:
    for name in names:
        written = edge.exported_program(name).graph_signature.user_inputs_to_mutate
        if written:
            raise LoweringError(
                f"{name} writes to its input {', '.join(written.values())}, which an ExecuTorch program gives out too",
                "Write to a copy: x = x.clone().",
            )


def partitioner_of(backend: str, kernels: Sequence[str] | None = None) -> Partitioner | None:
    """What XNNPACK is to run: all it can, or the named kernels (partition.KERNELS); None for the portable backend."""
    if backend == "portable":
        return None
    from trueport.targets.executorch.partition import KERNELS, Partitioner

    chosen = list(KERNELS) if kernels is None else list(kernels)
    return Partitioner(chosen) if chosen else None
