"""``diagnose``: a model's graphs examined one by one, without an export being written."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from trueport.diagnosis.examine import Examination, examine
from trueport.errors import TrueportError


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


def diagnose(model: str | Path | nn.Module, *, inputs: Any = None, trust_remote_code: bool = False) -> Diagnosis:
    """Say why ``model`` does or does not export: each finding with file, line and mend.

    Args:
        model: a hub id, a folder, or a module.
        inputs: sample inputs, a tuple or a dict; needed for a module that is not a PreTrainedModel.
        trust_remote_code: run Python files that lie in the checkpoint.
    """
    if isinstance(model, nn.Module) and inputs is not None:
        return Diagnosis((examine(model, inputs),))
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
        results.append(examine(module, given, name=component.name, names=names, dynamic=dynamic))
    return Diagnosis(tuple(results))
