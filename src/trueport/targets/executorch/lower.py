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
from trueport.targets.executorch.external import STEM, put_beside
from trueport.targets.executorch.memory import check_arena, measure
from trueport.targets.executorch.rewrites import prepared

if TYPE_CHECKING:
    from executorch.exir import EdgeProgramManager, ExecutorchBackendConfig, ExecutorchProgramManager

    from trueport.targets.executorch.blobs import Blobs
    from trueport.targets.executorch.methods import Method
    from trueport.targets.executorch.partition import Partitioner

BACKENDS = ("xnnpack", "portable")
"""Kernels to run on: XNNPACK's where it has one, or ExecuTorch's portable ones alone."""
DEFAULT_BACKEND = "xnnpack"


def lower(
    captured: Iterable[Captured | Method],
    path: Path,
    file: str,
    options: Mapping[str, Any],
    blobs: Blobs,
    *,
    beside: bool,
) -> dict[str, Lowered]:
    """Write ``path``, one method for each captured program; by component name.

    Args:
        captured: programs whose every dimension is bounded, or what an interrupted export had made of them. Each is lowered
            before the next is asked for.
        path: the ``.pte`` to write.
        file: the same, relative to the artefact's root.
        options: ``backend``, one of BACKENDS; ``max_arena``, bytes; ``kernels``, names of XNNPACK's kernels to use
            (partition.KERNELS).
        blobs: that views of the weights are taken from.
        beside: whether the weights lie in a file of their own.

    Raises:
        LoweringError: an operator has no kernel, or the memory to plan is more than ``max_arena``.
    """
    from trueport.targets.executorch.blobs import uncopied
    from trueport.targets.executorch.methods import together

    backend = options.get("backend") or DEFAULT_BACKEND
    if backend not in BACKENDS:
        raise LoweringError(f"There is no backend {backend}", f"Choose from {', '.join(BACKENDS)}.")
    with uncopied(blobs):
        methods = [_method(part, backend, options, blobs, beside=beside) for part in captured]
        program, data = together([method.emitted for method in methods], _config(beside))
    files = {path: program} | {path.parent / f"{name}.ptd": cord for name, cord in data.items()}
    _write(files, options.get("meter") or Meter())
    kernels = sorted({name for method in methods for name in method.kernels})
    extra = {"backend": backend, "kernels": kernels}
    if beside:
        extra["data"] = file.rpartition("/")[0] + f"/{STEM}.ptd"
    return {
        method.name: Lowered(
            file,
            method.interface,
            depth=method.depth,
            guards=method.guards,
            extra={"method": method.stem, "memory": method.memory, **extra},
        )
        for method in methods
    }


def _method(part: Captured | Method, backend: str, options: Mapping[str, Any], blobs: Blobs, *, beside: bool) -> Method:
    """One component, lowered, and kept where that is wanted; or as it was kept."""
    from trueport.targets.executorch.kept import to_bytes
    from trueport.targets.executorch.methods import Method, emitted

    if isinstance(part, Method):
        return part
    names = _names(part, blobs)
    depth = len(part.program.graph.nodes)
    partitioner = partitioner_of(backend, options.get("kernels"))
    program = to_program({part.stem: part.program}, partitioner, beside=beside)
    plan = measure(program, part.stem, part.interface)
    check_arena({part.stem: plan}, options.get("max_arena"))
    kernels = tuple(sorted(partitioner.taken)) if partitioner else ()
    memory = plan.to_json()
    method = Method(part.name, part.stem, emitted(program), part.interface, part.guards, depth, memory, kernels)
    if part.keep is not None:
        content = to_bytes(method, names)
        if content is not None:
            part.keep(content)
    return method


def _names(part: Captured, blobs: Blobs) -> dict[int, str]:
    """Hold the weights and constants of a program; by a view's id the parameter that lies in the checkpoint."""
    names: dict[int, str] = {}
    for name, tensor in (*part.program.state_dict.items(), *part.program.constants.items()):
        view = blobs.hold(tensor) if isinstance(tensor, torch.Tensor) else None
        if view is not None and name in part.origins:
            names.setdefault(id(view), name)
    return names


def _write(files: Mapping[Path, Any], meter: Meter) -> None:
    """Write the program, and the weights that lie beside it."""
    meter.start("weights", sum(len(cord) for cord in files.values()))
    for file, cord in files.items():
        with file.open("wb") as stream:
            # Its own writing functions tell nobody how far they are.
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
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    from trueport.targets.executorch.functional import quickly_functional
    from trueport.targets.executorch.grouping import quickly_grouped
    from trueport.targets.executorch.passes import only_needed, remembered_shapes
    from trueport.targets.executorch.scans import sized_scans
    from trueport.targets.executorch.sharing import shared_weights
    from trueport.targets.executorch.writes import written_in_buffers

    stripped = {name: prepared(program) for name, program in programs.items()}
    if beside:
        put_beside(stripped)
    try:
        with remembered_shapes():
            # torch asks how its own CPU would convolve, which for one row depends on the length: it was bounded by that.
            own = torch.backends.mkldnn.flags(enabled=False)
            with quickly_functional(), quickly_grouped(), only_needed(), shared_weights(), own:
                edge = to_edge_transform_and_lower(
                    stripped,
                    partitioner=[] if partitioner is None else [partitioner],
                    # The verifier takes len() of every tensor (exir/verification/arg_validator.py): a guard that makes the
                    # first dynamic axis a constant.
                    compile_config=EdgeCompileConfig(_check_ir_validity=False),
                )
            _refuse_written(edge, programs)
            with written_in_buffers(), sized_scans():
                return edge.to_executorch(_config(beside))
    except LoweringError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:400] or type(error).__name__
        _, _, lacking = reason.partition("Missing out variants: ")
        if lacking:
            raise LoweringError(
                f"ExecuTorch has no kernel for {lacking.strip('{}')} in {', '.join(programs)}",
                "`trueport diagnose MODEL --to executorch` names its line; --to onnx may have a form for it.",
            ) from error
        raise LoweringError(f"ExecuTorch cannot lower {', '.join(programs)}: {reason}") from error


def _config(beside: bool) -> ExecutorchBackendConfig:
    """How programs are planned and written."""
    from executorch.exir import ExecutorchBackendConfig

    from trueport.targets.executorch.planning import PlanningPass

    return ExecutorchBackendConfig(
        # Together with elided views, writes in place give wrong values (Gemma 3 under the portable kernels).
        run_reinplace_pass=True,
        remove_view_copy=False,
        memory_planning_pass=PlanningPass(),
        external_constants=(lambda node: STEM) if beside else False,
    )


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
