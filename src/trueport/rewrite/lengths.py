"""Lengths that stay symbols while torch.export traces: ``x[:, -512:]``, ``min(512, x.shape[1])``, ``nn.LSTM``.

The first two compare a length with a number. Traced as they stand, each holds on one side of that number only.
"""

from __future__ import annotations

import builtins
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from trueport.rewrite.recurrent import RECURRENT, recurrent

_HOMES = (str(Path(torch.__file__).parent), str(Path(__file__).parent.parent))


class Symbolic(TorchFunctionMode):
    """``x[..., -n:]`` begins at ``max(length - n, 0)``; recurrent layers become one scan and not a step for each token."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.Tensor.__getitem__ and isinstance(args[0], torch.Tensor):
            args = (args[0], _bounded(args[0], args[1]))
        elif getattr(func, "__name__", "") in RECURRENT and not kwargs and len(args) == 9 and _symbolic(args[0]):
            return recurrent(func.__name__, *args)
        return func(*args, **(kwargs or {}))


def _symbolic(tensor: Any) -> bool:
    return isinstance(tensor, torch.Tensor) and any(isinstance(size, torch.SymInt) for size in tensor.shape)


def _bounded(tensor: torch.Tensor, index: Any) -> Any:
    parts = list(index) if isinstance(index, tuple) else [index]
    if not all(part is None or part is Ellipsis or isinstance(part, (slice, int)) for part in parts):
        return index
    taken = sum(part is not None and part is not Ellipsis for part in parts)
    axis = 0
    for place, part in enumerate(parts):
        if part is Ellipsis:
            axis += tensor.ndim - taken
        elif part is not None:
            if isinstance(part, slice):
                parts[place] = _slice(part, tensor.shape[axis])
            axis += 1
    return tuple(parts) if isinstance(index, tuple) else parts[0]


def _slice(part: slice, length: Any) -> slice:
    fixed = type(part.start) is int and part.start < 0 and part.step in (None, 1) and part.stop is None
    if fixed and isinstance(length, torch.SymInt):
        return slice(torch.sym_max(length + part.start, 0), None)
    return part


@contextmanager
def lengths_kept() -> Iterator[None]:
    """Inside, in this thread, slices and the builtin ``min`` and ``max`` of the model's own code keep lengths symbolic."""
    thread = threading.get_ident()
    before = builtins.min, builtins.max

    def symbolic(original: Callable[..., Any], other: Callable[[Any, Any], Any]) -> Callable[..., Any]:
        def choose(*args: Any, **kwargs: Any) -> Any:
            if len(args) > 1 and not kwargs and threading.get_ident() == thread:
                symbols = any(isinstance(arg, torch.SymInt) for arg in args)
                whole = all(isinstance(arg, (int, torch.SymInt)) for arg in args)
                if symbols and whole and not sys._getframe(1).f_code.co_filename.startswith(_HOMES):
                    result = args[0]
                    for arg in args[1:]:
                        result = other(result, arg)
                    return result
            return original(*args, **kwargs)

        return choose

    builtins.min = symbolic(before[0], torch.sym_min)  # type: ignore[assignment]
    builtins.max = symbolic(before[1], torch.sym_max)  # type: ignore[assignment]
    try:
        with Symbolic():
            yield
    finally:
        builtins.min, builtins.max = before
