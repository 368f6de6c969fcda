"""``exportable``: patches on, then everything as it was."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from trueport.patches.patch import Patch
from trueport.patches.registry import registered

_lock = threading.RLock()


@dataclass
class Report:
    """What the context did: the dotted paths that it replaced, and why."""

    applied: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)


@contextmanager
def exportable(model: nn.Module, *, patches: Sequence[Patch] | None = None) -> Iterator[Report]:
    """Put the patches in place that ``model`` needs; afterwards every attribute is the object that it was.

    Args:
        model: the module about to be exported.
        patches: these instead of the registered ones.

    Patches are process-wide, so a second thread waits.
    """
    modules = {type(module).__module__ for module in model.modules()}
    chosen = [patch for patch in (registered() if patches is None else patches) if patch.applies_to(modules)]
    report = Report()
    undo = []
    with _lock:
        try:
            for patch in chosen:
                owner, name, original = patch.resolve()
                undo.append((owner, name, original))
                setattr(owner, name, patch.replacement(original))
                report.applied.append(patch.path)
                report.reasons[patch.path] = patch.symptom
            yield report
        finally:
            for owner, name, original in reversed(undo):
                setattr(owner, name, original)
