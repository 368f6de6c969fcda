"""One module, examined by running it and by exporting it: what would have to change, line by line."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from trueport.diagnosis.conduct import Finding, conduct
from trueport.errors import TrueportError
from trueport.quiet import silent

if TYPE_CHECKING:
    from trueport.patches.context import Report
    from trueport.rewrite import Rewrite


@dataclass
class Examination:
    """What was found about a module.

    ``reads`` are the lines that read tensor values; ``rewritten`` those that the context rewrites; ``specialised`` the
    input dimensions that become constant though the module takes other lengths, ``static`` those of which it takes no
    other; ``unknown`` the classes that pytree does not know; ``patches`` the paths that apply; ``findings`` what prevents
    the export, in words. ``program`` is the exported program, where there is one.
    """

    name: str
    reads: list[str] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    specialised: list[Finding] = field(default_factory=list)
    static: list[Finding] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    patches: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    program: torch.export.ExportedProgram | None = field(default=None, repr=False)

    @property
    def exportable(self) -> bool:
        """Whether torch.export takes the module, under the context, for all the sizes that the module takes."""
        return self.program is not None and not self.findings and not self.specialised

    def lines(self) -> list[str]:
        """The examination in words, a line for each thing."""
        verdict = "exports" if self.exportable else "does not export"
        lines = [f"{self.name}: {verdict}"]
        lines += [f"  reads a tensor's value: {read}" for read in self.reads]
        lines += [f"  rewritten: {site}" for rewrite in self.rewrites for site in rewrite.sites]
        lines += [f"  constant dimension: {finding}" for finding in self.specialised]
        lines += [f"  static dimension: {finding}" for finding in self.static]
        lines += [f"  unknown to pytree: {name}; put @trueport.state on it" for name in self.unknown]
        lines += [f"  patch: {path}: {why}" for path, why in self.patches.items()]
        return [*lines, *(f"  {finding.kind}: {finding}" for finding in self.findings)]


def examine(
    module: nn.Module,
    inputs: Any,
    *,
    name: str = "",
    names: tuple[str, ...] = (),
    dynamic: tuple[frozenset[int], ...] | None = None,
    targets: Collection[str] = (),
) -> Examination:
    """Run and export ``module`` on sample ``inputs``, a tuple or a dict, and say what stands in the way.

    Args:
        module: in eval mode.
        inputs: sizes of 2 and more, so that torch does not take them for constants.
        name: how the report calls it; its class by default.
        names: of the inputs, for the report.
        dynamic: the axes of each input that are to be dynamic; by default those that the module takes at other lengths.
        targets: those whose operators are asked for.
    """
    result = Examination(name or type(module).__name__)
    result.findings += conduct(module, inputs)
    if any(finding.kind in ("training", "unknown class") for finding in result.findings):
        result.unknown += [finding.problem for finding in result.findings if finding.kind == "unknown class"]
        return result
    _read(module, inputs, result)
    _export(module, inputs, result, names, dynamic)
    if result.program is not None:
        from trueport.diagnosis.operators import lacking

        for target in targets:
            result.findings += lacking(copy.deepcopy(result.program), target)
    return result


def _read(module: nn.Module, inputs: Any, result: Examination) -> None:
    """Lines that read values, and classes in the outputs that pytree does not know."""
    from trueport.patches.caches import registered_caches, unknown_classes
    from trueport.rewrite import find
    from trueport.rewrite.watch import call_with, preserved

    found = find(module, inputs)
    places = dict.fromkeys(f"{read.file}:{read.start[0]}: {read.line}" for read in found.reads)
    result.reads += list(places)
    with torch.no_grad(), preserved(module), registered_caches():
        classes = unknown_classes(call_with(module, inputs))
    result.unknown += [f"{cls.__module__}.{cls.__qualname__}" for cls in classes]


def _export(
    module: nn.Module,
    inputs: Any,
    result: Examination,
    names: tuple[str, ...],
    dynamic: tuple[frozenset[int], ...] | None,
) -> None:
    from trueport.capture import watch_specializations
    from trueport.patches import exportable
    from trueport.rewrite.watch import preserved

    args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (tuple(inputs), {})
    report: Report | None = None
    with silent("stderr"), silent("stdout"):
        try:
            with (
                preserved(module),
                exportable(module, inputs=inputs) as context,
                watch_specializations() as seen,
                torch.no_grad(),
            ):
                report = context.report
                axes: Any = pytree.tree_map_only(torch.Tensor, _automatic, kwargs or args)
                if dynamic is not None:
                    axes = tuple(dict.fromkeys(each, torch.export.Dim.AUTO) for each in dynamic)
                if args and _takes_any(module):
                    axes = (axes,)
                program = torch.export.export(module, args, kwargs, dynamic_shapes=axes, strict=False)
            result.program = program
        except Exception as error:
            result.findings.append(_refusal(error))
        if report is not None:
            result.rewrites += report.rewrites
            result.patches |= report.reasons
    if result.program is None:
        return
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    wanted = set(program.graph_signature.user_inputs)
    tensors = [node for node in placeholders if node.name in wanted and isinstance(node.meta.get("val"), torch.Tensor)]
    served = _served(module, inputs) if dynamic is None else set[tuple[str, int]]()
    for index, node in enumerate(tensors):
        for axis, length in enumerate(node.meta["val"].shape):
            if isinstance(length, torch.SymInt) and not length.node.expr.is_number:
                continue
            if int(length) < 2 or (dynamic is not None and axis not in dynamic[index]):
                continue
            lines = [entry.line for entry in seen if entry.value == int(length) and entry.line]
            label = names[index] if index < len(names) else node.name
            problem = f"axis {axis} of input {label} becomes the constant {int(length)}"
            where = lines[0] if lines else ""
            if dynamic is None and (node.name, axis) not in served:
                result.static.append(Finding("static dimension", where, problem, "The module takes no other length."))
                continue
            mend = "Compute from the tensor's own shape there, or declare the axis static."
            result.specialised.append(Finding("constant dimension", where, problem, mend))


def _served(module: nn.Module, inputs: Any) -> set[tuple[str, int]]:
    """Axes by the names of torch's placeholders that the module takes at other lengths, found by running it."""
    from trueport.calls import arguments_of, call_of
    from trueport.rewrite.watch import preserved
    from trueport.roles.probing import Probe, find_axes

    with torch.no_grad(), preserved(module):
        try:
            tree = arguments_of(module, inputs)
            call, feeds = call_of(tree, module(*tree[0], **tree[1]))
            found = find_axes(Probe(lambda given: call.run(module, given)), feeds)
        except TrueportError:  # classes of the caller's own: their axes are not known here
            return set()
    return {(name.replace(".", "_"), axis) for name, axis in found.axes}


def _takes_any(module: nn.Module) -> bool:
    """Whether ``forward`` is declared as ``forward(*args)``."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    return bool(parameters) and parameters[0].kind is inspect.Parameter.VAR_POSITIONAL


def _automatic(tensor: torch.Tensor) -> Any:
    return dict.fromkeys(range(tensor.ndim), torch.export.Dim.AUTO)


def _refusal(error: Exception) -> Finding:
    """An exception as a finding, with the line of the model's source."""
    import traceback

    from trueport.capture import user_line

    if isinstance(error, TrueportError):
        return Finding("refused", "", error.problem, error.remedy)
    line = user_line(traceback.extract_tb(error.__traceback__))
    summary = next((part.strip() for part in str(error).splitlines() if part.strip()), "")
    return Finding("refused", line, f"torch.export refuses: {type(error).__name__}: {summary}".rstrip("."), "")
