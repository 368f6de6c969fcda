"""``diagnose``: a model's graphs examined one by one, without an export being written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from trueport.diagnosis.conduct import Finding
from trueport.diagnosis.examine import Examination, examine
from trueport.errors import TrueportError
from trueport.recipe import opened
from trueport.targets import find_targets

if TYPE_CHECKING:
    from trueport.diagnosis.divergence import Comparison
    from trueport.source import Source


@dataclass(frozen=True)
class Diagnosis:
    """The examinations of a model's graphs."""

    examinations: tuple[Examination, ...]

    @property
    def exportable(self) -> bool:
        """Whether every graph exports."""
        return all(each.exportable for each in self.examinations)

    def lines(self) -> list[str]:
        """All of it in words."""
        return [line for each in self.examinations for line in each.lines()]

    def diff(self) -> str:
        """Every rewritten function as a unified diff."""
        rewrites = {(each.file, each.line): each for part in self.examinations for each in part.rewrites}
        return "\n\n".join(rewrite.diff() for rewrite in rewrites.values())


def diagnose(
    model: str | Path | nn.Module,
    *,
    inputs: Any = None,
    against: str | Path | nn.Module | None = None,
    to: str = "onnx",
    trust_remote_code: bool = False,
) -> Diagnosis | Comparison:
    """Say why ``model`` does or does not export, or where an artefact leaves its original.

    Args:
        model: a hub id, a folder, a module, or ``FILE.py:NAME`` (recipe.py); with ``against`` a folder that Trueport wrote.
        inputs: sample inputs, a tuple or a dict; needed for a module that is not a PreTrainedModel.
        against: the original of the artefact; then the answer is the first operation whose result diverges.
        to: the targets, ``onnx``, ``executorch`` or both with a comma between them, whose operators are asked for.
        trust_remote_code: run Python files that lie in the checkpoint.

    Returns:
        A Diagnosis, each finding with file, line and mend; with ``against`` a Comparison.
    """
    recipe = opened(model, inputs)
    model, inputs, against = recipe.model, recipe.inputs, opened(against).model
    if against is not None:
        from trueport.diagnosis.divergence import diagnose_against

        if isinstance(model, nn.Module):
            raise TrueportError("A module cannot be held against its original", "Give the folder that was exported.")
        return diagnose_against(model, against, trust_remote_code=trust_remote_code)
    targets = [target.name for target in find_targets(to)]
    if isinstance(model, nn.Module) and inputs is not None:
        return Diagnosis((examine(model, inputs, targets=targets),))
    if isinstance(model, nn.Module) and not hasattr(model, "config"):
        raise TrueportError(
            f"{type(model).__name__} is no PreTrainedModel and no inputs were given",
            "Give sample tensors as inputs=(...).",
        )
    from trueport.capture import CheckedModule
    from trueport.roles import components
    from trueport.roles.component import sample
    from trueport.source import load_source

    source = load_source(model, tokenizer=None, trust_remote_code=trust_remote_code)
    results = []
    for component in components(source.model, untrained=source.untrained):
        feeds = sample(component.interface, component.sizes)
        names = tuple(tensor.name for tensor in component.interface.inputs)
        given = tuple(feeds[name] for name in names)
        module = CheckedModule(component).eval()
        dynamic = tuple(
            frozenset(axis for axis, length in enumerate(tensor.shape) if isinstance(length, str))
            for tensor in component.interface.inputs
        )
        results.append(
            examine(module, given, name=component.name, names=names, dynamic=dynamic, targets=set(targets) & {"onnx"})
        )
    if "executorch" in targets:
        _programs(source, results)
    return Diagnosis(tuple(results))


def _programs(source: Source, results: list[Examination]) -> None:
    """Add what ExecuTorch lacks, which captures other components: bounded, the cache inside."""
    from trueport.capture import capture
    from trueport.diagnosis.operators import lacking

    (target,) = find_targets("executorch")
    for part in target.components(source.model, untrained=source.untrained, options={}):
        examined = next((each for each in results if each.name == part.name), results[-1])
        if examined.program is None:
            continue
        try:
            examined.findings += lacking(capture(part).program, "executorch")
        except TrueportError as error:
            examined.findings.append(Finding("refused", "", f"executorch: {error.problem}", error.remedy))
