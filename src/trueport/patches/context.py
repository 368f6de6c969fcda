"""``exportable``: patches, cache nodes and rewritten control flow on, then everything as it was."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

from trueport.patches.patch import Patch, modules_of
from trueport.patches.registry import needed

if TYPE_CHECKING:
    from trueport.rewrite import Rewrite

_lock = threading.RLock()
_in_force: list[Patch] = []


@dataclass
class Report:
    """What the context did, and why.

    ``applied`` are the dotted paths that it replaced, ``reasons`` the symptom that each replacement cures,
    ``registered`` the classes that became pytree nodes, ``rewrites`` the functions whose control flow was rewritten, and
    ``notes`` what it did not do and what it left out.
    """

    applied: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)
    registered: list[str] = field(default_factory=list)
    rewrites: list[Rewrite] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [f"patched {path}: {self.reasons[path]}" for path in self.applied]
        lines += [f"rewrote {site}" for rewrite in self.rewrites for site in rewrite.sites]
        if self.registered:
            lines.append(f"registered {len(self.registered)} cache classes with pytree")
        return "\n".join([*lines, *self.notes]) or "nothing was needed"


@dataclass(frozen=True)
class Context:
    """What ``with exportable(...) as context`` binds."""

    report: Report = field(default_factory=Report)


@contextmanager
def exportable(
    model: nn.Module,
    *,
    inputs: Any = None,
    patches: Sequence[Patch] | None = None,
    torch: bool = True,
    transformers: bool = True,
    caches: bool = True,
    rewrite: bool = True,
    skip: Collection[str] = (),
) -> Iterator[Context]:
    """Make ``model`` exportable inside the block; afterwards every attribute is the object that it was.

    Args:
        model: the module about to be exported.
        inputs: sample inputs, a tuple or a dict (or a list of them, taking different branches), with which the lines that
            read tensor values are found; without, a PreTrainedModel's own dummy inputs.
        patches: the user's own, applied after the registered ones.
        torch: whether the registered patches of torch apply.
        transformers: whether those of transformers apply.
        caches: whether cache classes become pytree nodes.
        rewrite: whether control flow that reads tensor values is rewritten.
        skip: paths of patches to leave out.

    The context belongs to its thread. Another thread that enters one waits until this one is left; another thread that
    merely runs a model meets the originals, since every replaced function hands its calls on to them. Entered again
    in its own thread, it adds what is not in force yet.

    Raises:
        CaptureError: a patch finds nothing at its path, or control flow cannot be rewritten; nothing stays changed.
    """
    kinds = {"torch": torch, "transformers": transformers}
    modules = modules_of(model)
    chosen = [patch for patch in needed(modules) if kinds.get(patch.kind, True)]
    chosen += [patch for patch in patches or () if patch.applies_to(modules)]
    context = Context()
    with _lock, ExitStack() as stack:
        for patch in chosen:
            if patch.path not in skip and patch not in _in_force:
                stack.enter_context(_applied(patch))
                context.report.applied.append(patch.path)
                context.report.reasons[patch.path] = patch.symptom
        if caches:
            from trueport.patches.caches import registered_caches

            added = stack.enter_context(registered_caches())
            context.report.registered += [f"{cls.__module__}.{cls.__qualname__}" for cls in added]
        if rewrite:
            from trueport.rewrite import rewritten

            stack.enter_context(rewritten(model, inputs, context.report))
        yield context


@contextmanager
def applied(patches: Sequence[Patch]) -> Iterator[None]:
    """Within, these are in force for this thread, as in ``exportable``.

    Raises:
        CaptureError: a patch finds nothing at its path; nothing stays changed.
    """
    with _lock, ExitStack() as stack:
        for patch in patches:
            stack.enter_context(_applied(patch))
        yield


def applied_where_there(patches: Sequence[Patch]) -> AbstractContextManager[None]:
    """``applied``, without those whose path leads nowhere in the installed versions: they save time, and nothing else."""
    return applied([patch for patch in patches if patch.is_there])


@contextmanager
def _applied(patch: Patch) -> Iterator[None]:
    owner, name, original = patch.resolve()
    setattr(owner, name, patch.confined(original, threading.get_ident()))
    _in_force.append(patch)
    try:
        yield
    finally:
        _in_force.remove(patch)
        setattr(owner, name, original)
