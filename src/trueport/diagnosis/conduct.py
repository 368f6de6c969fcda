"""What a forward must not do: change its module, draw random numbers, or answer differently the second time."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from trueport.rewrite.watch import call_with, preserved

RANDOM = {
    "bernoulli", "bernoulli_", "exponential_", "multinomial", "normal", "normal_", "rand", "rand_like", "randint",
    "randint_like", "randn", "randn_like", "random_", "randperm", "uniform_",
}  # fmt: skip


_WATCHING = threading.Lock()
"""Two threads that put back what they found would leave one's watch in place."""


@dataclass(frozen=True)
class Finding:
    """One thing that stands in the way: what kind, where (``file:line``, or empty), what, and the mend."""

    kind: str
    where: str
    problem: str
    mend: str

    def __str__(self) -> str:
        place = f"{self.where}: " if self.where else ""
        return f"{place}{self.problem}. {self.mend}".rstrip()


def conduct(module: nn.Module, inputs: Any) -> list[Finding]:
    """Findings about ``module`` itself, from its modes, its inputs and two runs on ``inputs``, a tuple or a dict."""
    findings = [*_training(module), *_foreign(inputs)]
    if findings:
        return findings
    stores: dict[str, str] = {}
    draws: dict[str, str] = {}
    with torch.no_grad(), preserved(module):
        before = {name: buffer.detach().clone() for name, buffer in module.named_buffers()}
        with _stores_watched(stores), _Draws(draws):
            first = call_with(module, inputs)
        written = [name for name, buffer in module.named_buffers() if _differs(before.get(name), buffer)]
        second = call_with(module, inputs) if not draws else first
    findings += [
        Finding(
            "side effect",
            where,
            f"forward assigns self.{name}",
            "Return the value instead; an exported program keeps no attribute.",
        )
        for name, where in stores.items()
    ]
    findings += [
        Finding(
            "side effect",
            "",
            f"forward of {type(module).__name__} writes to the buffer {name}, so that a call changes the next",
            "Make it an input and an output: state={...}.",
        )
        for name in written
    ]
    findings += [
        Finding("random", where, f"torch.{name} draws without a seed", "Take the random numbers as an input.")
        for name, where in draws.items()
    ]
    if not findings and not _alike(first, second):
        findings.append(
            Finding(
                "state",
                "",
                f"{type(module).__name__} answers the same inputs differently the second time",
                "Python state changes between calls; make it an input and an output.",
            )
        )
    return findings


def _training(module: nn.Module) -> Iterator[Finding]:
    names = [name or type(module).__name__ for name, part in module.named_modules() if part.training]
    if names:
        yield Finding("training", "", f"{names[0]} is in training mode", "Call .eval() first.")


def _foreign(inputs: Any) -> Iterator[Finding]:
    from trueport.patches.caches import registered_caches

    with registered_caches():
        leaves = pytree.tree_leaves(inputs)
    for leaf in leaves:
        if leaf is not None and not isinstance(leaf, (torch.Tensor, bool, int, float, str, torch.dtype, torch.device)):
            name = f"{type(leaf).__module__}.{type(leaf).__qualname__}"
            yield Finding(
                "unknown class",
                "",
                f"pytree does not know {name}, which is among the inputs",
                "Put @trueport.state on it.",
            )


@contextmanager
def _stores_watched(found: dict[str, str]) -> Iterator[None]:
    """Note every attribute that is set on a module, and where; tensors written by torch's own modules do not count."""
    _WATCHING.acquire()
    original, thread = nn.Module.__setattr__, threading.get_ident()

    def setting(self: Any, name: str, value: Any) -> None:
        file = sys._getframe(1).f_code.co_filename
        if "/torch/" not in file and threading.get_ident() == thread:
            found.setdefault(name, f"{file}:{sys._getframe(1).f_lineno}")
        original(self, name, value)

    nn.Module.__setattr__ = setting  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__setattr__ = original  # type: ignore[method-assign]
        _WATCHING.release()


class _Draws(TorchFunctionMode):
    def __init__(self, found: dict[str, str]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in RANDOM and kwargs.get("generator") is None:
            from trueport.capture import user_line

            self.found.setdefault(name, user_line(traceback.extract_stack()).partition(" (")[0])
        return func(*args, **kwargs)


def _differs(before: torch.Tensor | None, buffer: torch.Tensor) -> bool:
    if before is None or before.shape != buffer.shape:
        return True
    return not bool(((before == buffer) | ((before != before) & (buffer != buffer))).all())


def _alike(one: Any, other: Any) -> bool:
    left, right = pytree.tree_leaves(one), pytree.tree_leaves(other)
    tensors = [(a, b) for a, b in zip(left, right, strict=False) if isinstance(a, torch.Tensor)]
    return len(left) == len(right) and all(
        isinstance(b, torch.Tensor) and a.shape == b.shape and torch.allclose(a, b, equal_nan=True) for a, b in tensors
    )
