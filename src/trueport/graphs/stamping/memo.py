"""What operators give on shapes alone, asked of torch once for operands of the same form.

Layers that repeat ask the same again and again, and torch takes a quarter of a millisecond for each answer.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

Form = tuple[Any, ...]


class _Several(list[Any]):
    """Forms of a tuple's entries; of a list's they are a list."""


class _UnknownError(Exception):
    """The shapes alone do not tell what an operator gives."""


class Memo:
    """Of one run under one fake mode."""

    def __init__(self) -> None:
        self.known: dict[Form, Any] = {}

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """``func(*args, **kwargs)``, whose tensors are new ones, without memory, in any case."""
        try:
            key = (func, _form(args), _form(tuple(sorted(kwargs.items())))) if _is_pure(func) else None
        except _UnknownError:
            key = None
        if key is not None and key in self.known:
            return _made(self.known[key])
        result = func(*args, **kwargs)
        if key is not None and not any(result is operand for operand in args):
            with suppress(_UnknownError):
                self.known[key] = _noted(result)
        return result


def _is_pure(func: Any) -> bool:
    return isinstance(func, torch._ops.OpOverload) and not func._schema.is_mutable


def _form(value: Any) -> Any:
    """All that an operator's result may depend on, to be looked up by."""
    if isinstance(value, torch.Tensor):
        return (*_noted(value)[:4], value.storage_offset())
    if isinstance(value, (tuple, list)):
        return tuple(_form(entry) for entry in value)
    if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)):
        raise _UnknownError
    try:
        hash(value)
    except TypeError:
        raise _UnknownError from None
    return type(value), value  # 1, 1.0 and True are equal


def _noted(value: Any) -> Any:
    """A result's form: of a tensor its shape, strides, dtype, device and mode; several of those together; a device itself.

    Raises:
        _UnknownError: it has values, or sizes that depend on some.
    """
    if isinstance(value, (tuple, list)):
        return (_Several if isinstance(value, tuple) else list)(_noted(entry) for entry in value)
    if isinstance(value, (torch.device, torch.dtype, torch.layout)):
        return value
    plain = isinstance(value, FakeTensor) and value.constant is None and value.layout == torch.strided
    if not plain or value.is_conj() or value.is_neg() or not all(type(size) is int for size in value.shape):
        raise _UnknownError
    return tuple(value.shape), value.stride(), value.dtype, value.fake_device, value.fake_mode


def _made(form: Any) -> Any:
    """New tensors of these forms."""
    if isinstance(form, list):
        return (tuple if isinstance(form, _Several) else list)(_made(entry) for entry in form)
    if not isinstance(form, tuple):
        return form
    shape, strides, dtype, device, mode = form
    with torch._C._DisableTorchDispatch():
        meta = torch.empty_strided(shape, strides, dtype=dtype, device="meta")
    return FakeTensor(mode, meta, device)
