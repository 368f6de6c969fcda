"""Weights of one dtype whose values lie in another, and are cast piece by piece where an operator reads them.

A model whose parameters are of this kind computes what its cast copy computes, without the copy: its modules see the
dtype of the copy, an embedding gathers before it casts, and a large matrix product goes through a few output features at
a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from trueport.weights.lazy import NARROW

_aten = torch.ops.aten
PIECE = 32 * 2**20
"""Bytes of a weight that are cast at once, where the operator can be taken apart."""

VIEWS = {
    _aten.detach.default, _aten.alias.default, _aten.t.default, _aten.transpose.int, _aten.permute.default,
    _aten.view.default, _aten._unsafe_view.default, _aten.reshape.default, _aten.expand.default, _aten.select.int,
    _aten.slice.Tensor, _aten.narrow.default, _aten.split.Tensor, _aten.split_with_sizes.default, _aten.unbind.int,
    _aten.squeeze.default, _aten.squeeze.dim, _aten.unsqueeze.default, _aten.as_strided.default,
}  # fmt: skip
"""Operators that read no value: what they give is of this kind too."""
GATHERS = {_aten.embedding.default, _aten.index_select.default, _aten.index.Tensor, _aten.gather.default}
"""Operators that only take some of the values: they are cast after it."""


class StreamedTensor(torch.Tensor):
    """``stored`` as if it were of ``dtype``."""

    stored: torch.Tensor

    @staticmethod
    def __new__(cls, stored: torch.Tensor, dtype: torch.dtype) -> StreamedTensor:
        """A wrapper of ``stored``'s shape and strides."""
        made: StreamedTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, stored.shape, strides=stored.stride(), storage_offset=stored.storage_offset(), dtype=dtype,
            device=stored.device,
        )  # fmt: skip
        return made

    def __init__(self, stored: torch.Tensor, dtype: torch.dtype) -> None:
        # From a half to float32 to float64 is exact, and one step less.
        through = isinstance(stored, StreamedTensor) and dtype.itemsize >= stored.dtype.itemsize and _exact(stored)
        self.stored = stored.stored if through and isinstance(stored, StreamedTensor) else stored

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __repr__(self) -> str:  # type: ignore[override]
        return f"StreamedTensor({tuple(self.shape)}, {self.dtype} of {self.stored.dtype})"

    def values(self) -> torch.Tensor:
        """All of it, cast now."""
        return cast(self.stored.detach(), self.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """What ``func`` gives for the cast values."""
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, StreamedTensor):
            if func in VIEWS:
                found = func(first.stored, *args[1:], **kwargs)
                return tree_map(lambda part: cls(part, first.dtype), found)
            if func in GATHERS and not any(isinstance(entry, StreamedTensor) for entry in args[1:]):
                return cast(func(first.stored, *args[1:], **kwargs), first.dtype)
        if func in PRODUCTS and isinstance(args[-1], StreamedTensor) and not kwargs:
            return PRODUCTS[func](*tree_map(_cast, args[:-1]), args[-1])
        return func(*tree_map(_cast, args), **tree_map(_cast, kwargs))


def cast(stored: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Values in memory, for as long as an operator needs them: every cast goes through here."""
    return stored.to(dtype)


def _exact(stored: StreamedTensor) -> bool:
    """Whether the values of ``stored`` are those that it stores, in a wider dtype."""
    return stored.dtype == torch.float32 and stored.stored.dtype in NARROW


def _cast(value: Any) -> Any:
    return value.values() if isinstance(value, StreamedTensor) else value


def _pieces(weight: StreamedTensor, axis: int) -> Iterator[tuple[slice, torch.Tensor]]:
    """Where along ``axis``, and the cast values there."""
    length = weight.shape[axis]
    row = max(weight.numel() // max(length, 1), 1) * weight.dtype.itemsize
    step = max(PIECE // row, 1)
    for start in range(0, length, step):
        part = weight.stored.detach().narrow(axis, start, min(step, length - start))
        yield slice(start, start + part.shape[axis]), cast(part, weight.dtype)


def _mm(x: torch.Tensor, weight: StreamedTensor) -> torch.Tensor:
    """(rows, in) times (in, out), some output features after the other."""
    result = x.new_empty(x.shape[0], weight.shape[1])
    for part, values in _pieces(weight, 1):
        result[:, part] = x @ values
    return result


def _addmm(bias: torch.Tensor, x: torch.Tensor, weight: StreamedTensor) -> torch.Tensor:
    """The same with a bias, (out) or (rows, out)."""
    bias = bias.expand(x.shape[0], weight.shape[1])
    result = x.new_empty(bias.shape)
    for part, values in _pieces(weight, 1):
        result[:, part] = torch.addmm(bias[:, part], x, values)
    return result


def _bmm(x: torch.Tensor, weight: StreamedTensor) -> torch.Tensor:
    """(experts, rows, in) times (experts, in, out), some experts after the other."""
    result = x.new_empty(*x.shape[:2], weight.shape[2])
    for part, values in _pieces(weight, 0):
        result[part] = torch.bmm(x[part], values)
    return result


PRODUCTS: dict[Any, Callable[..., torch.Tensor]] = {
    _aten.mm.default: _mm,
    _aten.addmm.default: _addmm,
    _aten.bmm.default: _bmm,
}
"""Products whose last operand can be taken apart."""


def streamed(model: Any, dtype: torch.dtype) -> Any:
    """The model in ``dtype`` around the same parameters; its buffers, which are small, are cast and copied."""
    made: dict[int, Any] = {}
    for parameter in model.parameters():
        if parameter.is_floating_point():
            as_if = parameter.detach() if parameter.dtype == dtype else StreamedTensor(parameter.detach(), dtype)
            made[id(parameter)] = nn.Parameter(as_if, requires_grad=False)
        else:
            made[id(parameter)] = parameter
    for buffer in model.buffers():
        if buffer.is_floating_point():
            made[id(buffer)] = buffer.detach().to(dtype, copy=True)
    return one_by_one(copy.deepcopy(model, made))


def one_by_one(model: Any) -> Any:
    """The same model, which loops over its experts: the grouped kernel knows no float64, and would take all at once."""
    if getattr(model, "_can_set_experts_implementation", lambda: False)():
        model.set_experts_implementation("eager")
    return model
