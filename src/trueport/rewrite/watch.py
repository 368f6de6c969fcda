"""Finding by running: every place where Python asks a tensor for its value.

The module runs on sample inputs under a torch function mode that sees ``bool``, ``int``, ``item`` and iteration. Numbers
that come out of a tensor go on being watched, so that ``if n > 3`` is found after ``n = x.item()``. A second run takes
the other way at every test, once: what stands in branches that the samples do not take is found as well.
"""

from __future__ import annotations

import copy
import random
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from trueport.errors import SourceError
from trueport.weights.linked import fake_mode_of

Position = tuple[int, int]
RUNS = 24
"""Runs with answers that are not true, at most; each costs a forward pass."""

CALLS = 200_000
"""Torch calls in such a run, at most."""

KINDS = {
    "__bool__": "bool",
    "__contains__": "bool",
    "__int__": "item",
    "__float__": "item",
    "__index__": "item",
    "item": "item",
}


@dataclass(frozen=True)
class Read:
    """A place that reads a tensor's value: the code of its function, and (line, column) of its start and end."""

    code: CodeType = field(repr=False)
    file: str
    start: Position
    end: Position
    kind: str

    @property
    def line(self) -> str:
        """The source line."""
        import linecache

        return linecache.getline(self.file, self.start[0]).strip()


class Watch(TorchFunctionMode):
    """Records the reads of one run; ``forced`` are the answers to its first tests, instead of the true ones."""

    def __init__(self, reads: dict[Read, None], forced: Sequence[bool] = ()) -> None:
        super().__init__()
        self.reads = reads
        self.forced = forced
        self.answers: list[tuple[Read, bool]] = []
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        if self.forced and self.calls > CALLS:
            raise RuntimeError("answers that are not true keep this run from ending")
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        # Iteration itself is no torch function, the unbind that it does is one.
        kind = "iter" if name == "unbind" and sys._getframe(1).f_code.co_name == "__iter__" else KINDS.get(name)
        if kind is None or not args or not isinstance(args[0], torch.Tensor):
            return result
        read = self.note(kind)
        if kind == "bool" and read is not None:
            return self.answer(read, result)
        if name == "item" and isinstance(result, (int, float)):
            from trueport.rewrite.numbers import watched

            return watched(result, self)
        return result

    def note(self, kind: str) -> Read | None:
        """Record the place in the model's source from which torch was asked."""
        frame = _model_frame(sys._getframe(1))
        if frame is None:
            return None
        read = Read(_outermost(frame), frame.f_code.co_filename, *_position(frame), kind)
        self.reads[read] = None
        return read

    def answer(self, read: Read, result: bool) -> bool:
        """The answer to a test: the true one, unless another is asked for."""
        number = len(self.answers)
        given = self.forced[number] if number < len(self.forced) else result
        self.answers.append((read, given))
        return given


def _model_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost frame outside torch and this package; None beyond the model's own call."""
    homes = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    while frame is not None and frame.f_code is not run_once.__code__:
        name = frame.f_code.co_filename
        if not name.startswith(homes) and not name.startswith("<frozen"):
            return frame
        frame = frame.f_back
    return None


def _position(frame: FrameType) -> tuple[Position, Position]:
    positions = list(frame.f_code.co_positions())
    line, end, column, end_column = positions[frame.f_lasti // 2]
    line = line or frame.f_lineno
    return (line, column or 0), (end or line, 10**6 if end_column is None else end_column)


def _outermost(frame: FrameType) -> CodeType:
    """The code that has a function of its own: a comprehension's or a nested function's is part of another's."""
    code, outer = frame.f_code, frame.f_back
    while outer is not None and outer.f_code is not run_once.__code__:
        if code in outer.f_code.co_consts:
            code = outer.f_code
        outer = outer.f_back
    return code


def run_once(call: Callable[[], Any]) -> Any:
    """``call()``; the frame up to which reads are the model's."""
    return call()


def call_with(model: nn.Module, sample: Any) -> Any:
    """``model`` on a tuple or a dict of inputs, copied: a forward may write to them."""
    given = copy.deepcopy(sample)
    if isinstance(given, Mapping):
        return model(**given)
    return model(*given) if isinstance(given, (tuple, list)) else model(given)


def value_reads(model: nn.Module, samples: Sequence[Any], *, explore: bool = True) -> list[Read]:
    """Every place that reads a tensor's value when ``model`` runs on ``samples``, each a tuple or a dict.

    With ``explore``, until each test has been answered both ways. The model is as it was afterwards; runs with answers
    that are not true may fail, and their failures mean nothing.
    """
    reads: dict[Read, None] = {}
    covered: set[tuple[Read, bool]] = set()
    waiting: list[tuple[Any, list[bool], tuple[Read, bool]]] = []

    def run(sample: Any, forced: list[bool]) -> None:
        with Watch(reads, forced) as watch:
            try:
                run_once(lambda: call_with(model, sample))
            finally:
                answers = watch.answers
                for number, (read, answer) in enumerate(answers):
                    covered.add((read, answer))
                    if (read, not answer) not in covered:
                        forced = [*(given for _, given in answers[:number]), not answer]
                        waiting.append((sample, forced, (read, not answer)))

    with torch.no_grad(), preserved(model), exporting(), fake_mode_of(model):
        for sample in samples:
            run(sample, [])
        runs = 0
        while explore and waiting and runs < RUNS:
            sample, forced, wanted = waiting.pop(0)
            if wanted in covered:
                continue
            runs += 1
            with suppress(Exception):
                run(sample, forced)
    return list(reads)


_EXPORTING = threading.RLock()
"""Two threads that put back what they found would leave torch's flags set."""


@contextmanager
def exporting() -> Iterator[None]:
    """What asks ``torch.compiler.is_exporting()`` is told so: it takes the way that the export takes."""
    flags = ("_is_exporting_flag", "_is_compiling_flag")
    with _EXPORTING:
        before = [getattr(torch.compiler, flag) for flag in flags]
        for flag in flags:
            setattr(torch.compiler, flag, True)
        try:
            yield
        finally:
            for flag, value in zip(flags, before, strict=True):
                setattr(torch.compiler, flag, value)


COPIED = 2**28
"""Bytes of parameters up to which they are kept too, against a forward that writes to them."""


@contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Attributes, their contents, tensors and the random state of ``model`` as they were.

    Raises:
        SourceError: parameters too large to be kept were written to.
    """
    from trueport.rewrite.effects import restored

    numbers, arrays = random.getstate(), np.random.get_state()
    with restored(model) as reached, torch.random.fork_rng(devices=[]):
        every = {id(tensor): tensor for tensor in (*reached, *model.buffers(), *model.parameters())}
        large = sum(part.numel() * part.element_size() for part in model.parameters()) > COPIED
        kept = [
            (tensor, _version(tensor), None if large and isinstance(tensor, nn.Parameter) else _copy(tensor.detach()))
            for tensor in every.values()
        ]
        try:
            yield
        finally:
            random.setstate(numbers)
            np.random.set_state(arrays)
            written = [(tensor, value) for tensor, version, value in kept if _version(tensor) != version]
            for tensor, value in written:
                if value is None:
                    raise SourceError(
                        f"forward of {type(model).__name__} writes to its parameters", "Let it write to a copy."
                    )
                with torch.no_grad():
                    _restore(tensor, value)


EMPTY = 2**20
"""Bytes of a tensor from which on it is looked at whether it is empty, as the caches of a bounded program are."""

PIECE = 2**16
"""Bytes of it that are looked at together."""


def _copy(tensor: torch.Tensor) -> torch.Tensor:
    """What ``copy_`` makes the tensor again of: a copy, or one zero for all of its zeros, which may have no memory yet."""
    large = type(tensor) is torch.Tensor and tensor.nbytes >= EMPTY and tensor.is_contiguous()
    empty = large and not tensor.view(-1).view(torch.uint8).any()
    return tensor.new_zeros(()) if empty else tensor.clone()


def _restore(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Write what ``_copy`` kept; of what was empty only the pieces that no longer are, so that the others take no memory."""
    if value.ndim or not tensor.ndim or not tensor.is_contiguous():
        tensor.copy_(value)
        return
    for piece in tensor.view(-1).view(torch.uint8).split(PIECE):
        if piece.any():
            piece.zero_()


def _version(tensor: torch.Tensor) -> int:
    """How often a tensor was written to; of one made in inference mode nobody knows."""
    return -1 if tensor.is_inference() else tensor._version
