"""Pieces of Python as graphs: which tensors a piece reads from outside, and the same piece over operands.

A higher-order operator (cond, while_loop, scan) takes functions of explicit operands. A branch of a model reads locals,
parameters and buffers. ``probe`` runs such a piece once, outside the trace, and notes every tensor that it did not make
itself; ``inside`` runs it again with operands in their place. Both are torch function modes, so that submodules and
helpers that the piece calls need not be looked at.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

DIVISIONS = {"floor_divide", "__floordiv__", "__rfloordiv__", "remainder", "__mod__", "__rmod__", "fmod"}
"""Of whole numbers: by zero they end the run."""
LOOKUPS = {"index_select", "gather", "take", "take_along_dim", "embedding", "__getitem__", "select"}
"""With a tensor as an index: past the end they end the run."""


@dataclass(frozen=True)
class Probe:
    """What a piece gave back, the tensors that it took from outside, and which of them it wrote to.

    ``partial`` says that it calls what not every value can be given to, so that it may not run where a test forbids it.
    """

    result: Any
    captured: tuple[torch.Tensor, ...]
    mutated: tuple[torch.Tensor, ...]
    partial: bool = False


def _is_partial(name: str, args: Any, kwargs: Any) -> bool:
    """Whether a call ends the run for some values of its arguments."""
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    if name in DIVISIONS:
        return bool(tensors) and not any(tensor.is_floating_point() for tensor in tensors)
    if name not in LOOKUPS:
        return False
    return any(tensor.dtype in (torch.int64, torch.int32) for tensor in tensors[1:]) or (
        name == "embedding" and len(tensors) > 1
    )


class _Recorder(TorchFunctionMode):
    """Gives every tensor from outside a copy, so that in-place writes stay inside, and remembers both."""

    def __init__(self, own: Sequence[torch.Tensor]) -> None:
        super().__init__()
        self.outer: dict[int, torch.Tensor] = {}
        self.copies: dict[int, torch.Tensor] = {}
        self.own = {id(tensor): tensor for tensor in own}
        self.partial = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.partial |= _is_partial(getattr(func, "__name__", ""), args, kwargs)
        args, kwargs = pytree.tree_map_only(torch.Tensor, self._copy, (args, kwargs or {}))
        result = func(*args, **kwargs)
        pytree.tree_map_only(torch.Tensor, self._keep, result)
        return result

    def _copy(self, tensor: torch.Tensor) -> torch.Tensor:
        key = id(tensor)
        if key in self.own:
            return tensor
        if key not in self.outer:
            self.outer[key] = tensor
            self.copies[key] = self._keep(tensor.detach().clone())
        return self.copies[key]

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        # Kept alive: an id is unique among living objects only.
        self.own[id(tensor)] = tensor
        return tensor


class _Substitute(TorchFunctionMode):
    """Puts operands in the place of the tensors that ``table`` names by id."""

    def __init__(self, table: dict[int, torch.Tensor]) -> None:
        super().__init__()
        self.table = table

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = pytree.tree_map_only(torch.Tensor, self.replace, (args, kwargs or {}))
        if func is torch.Tensor.__setitem__ and isinstance(args[2], (bool, int, float)):
            args = (*args[:2], torch.full((), args[2], dtype=args[0].dtype, device=args[0].device))
        if func in (torch.tensor, torch.as_tensor) and args:
            return _spelled_out(args[0], **kwargs)
        return func(*args, **kwargs)

    def replace(self, tensor: torch.Tensor) -> torch.Tensor:
        return self.table.get(id(tensor), tensor)


def _spelled_out(data: Any, dtype: torch.dtype | None = None, device: Any = None, **_: Any) -> torch.Tensor:
    """``torch.tensor(data)`` without a constant, which a graph within a graph cannot hold."""
    if isinstance(data, torch.Tensor):
        return data.to(device=device or data.device, dtype=dtype or data.dtype, copy=True)
    if isinstance(data, (list, tuple)):
        parts = [_spelled_out(part, dtype, device) for part in data]
        common = (
            functools.reduce(torch.promote_types, (part.dtype for part in parts), parts[0].dtype) if parts else dtype
        )
        return torch.stack([part.to(common) for part in parts]) if parts else torch.zeros(0, dtype=dtype, device=device)
    if dtype is None:
        dtype = torch.bool if isinstance(data, bool) else torch.int64 if isinstance(data, int) else None
    return torch.full((), data, dtype=dtype or torch.get_default_dtype(), device=device)


def is_traced(value: Any) -> bool:
    """Whether a value is known only when the graph runs: a fake tensor, or a number read from one."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

    if isinstance(value, (torch.SymBool, torch.SymInt, torch.SymFloat)):
        return bool(free_unbacked_symbols(value))
    return isinstance(value, FakeTensor)


@contextmanager
def untraced() -> Iterator[None]:
    """Run on fake tensors without leaving a node in the graph or a symbol that nobody binds."""
    from torch._guards import detect_fake_mode
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    mode = detect_fake_mode()
    quiet = mode.shape_env.ignore_fresh_unbacked_symbols() if mode and mode.shape_env else nullcontext()
    with disable_proxy_modes_tracing(), quiet:
        yield


def probe(piece: Callable[..., Any], arguments: Sequence[Any] = ()) -> Probe:
    """Run ``piece(*arguments)`` outside the trace; tensors among the arguments count as its own copies."""
    with untraced():
        copied = pytree.tree_map_only(torch.Tensor, lambda tensor: tensor.detach().clone(), tuple(arguments))
        own = [leaf for leaf in pytree.tree_leaves(copied) if isinstance(leaf, torch.Tensor)]
        recorder = _Recorder(own)
        with recorder:
            result = piece(*copied)
        captured = dict(recorder.outer)
        # Returned as it is, without an operation on it: from outside as well.
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and id(leaf) not in recorder.own:
                captured.setdefault(id(leaf), leaf)
        mutated = [tensor for key, tensor in recorder.outer.items() if recorder.copies[key]._version > 0]
    return Probe(result, tuple(captured.values()), tuple(mutated), recorder.partial)


@contextmanager
def inside(
    captured: Sequence[torch.Tensor], operands: Sequence[torch.Tensor], mutated: Sequence[torch.Tensor]
) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
    """Within, ``operands`` stand for ``captured``; those that are written to are copied first.

    Yields the function that maps a tensor from outside to what stands for it.
    """
    written = {id(tensor) for tensor in mutated}
    table = {
        id(tensor): operand.clone() if id(tensor) in written else operand
        for tensor, operand in zip(captured, operands, strict=True)
    }
    mode = _Substitute(table)
    with mode:
        yield mode.replace


def united(*groups: Sequence[torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Each tensor once, in order of first appearance."""
    return tuple({id(tensor): tensor for group in groups for tensor in group}.values())
