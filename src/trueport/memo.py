"""What operators give on shapes alone, asked of torch once for operands of the same form.

Layers that repeat ask the same again and again, as does every pass over a program, and torch takes a quarter of a
millisecond for each answer, two where sizes are symbols.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.sym_node import SymNode
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

Form = tuple[Any, ...]


class _Several(list[Any]):
    """Patterns of a tuple's entries; of a list's they are a list."""


class _UnknownError(Exception):
    """The shapes alone do not tell what an operator gives."""


class Memo:
    """Of one run under one fake mode.

    Attributes:
        pure: higher-order operators that write to nothing.
        known: results by the operator and the forms of its operands.
        numbers: of the tensors' forms, to be looked up by.
        seen: by a tensor's id the tensor, which has to live as long, and its form's number.
    """

    def __init__(self, pure: Collection[Any] = ()) -> None:
        self.pure = frozenset(pure)
        self.known: dict[Form, Any] = {}
        self.numbers: dict[Form, int] = {}
        self.seen: dict[int, tuple[torch.Tensor, int]] = {}

    def call(self, func: Any, args: Any, kwargs: Any) -> Any:
        """``func(*args, **kwargs)``, whose tensors are new ones, without memory, in any case."""
        if not _is_pure(func) and func not in self.pure:
            self._forget((args, tuple(kwargs.values())))
            return func(*args, **kwargs)
        try:
            key = func, self._form(args), self._form(tuple(sorted(kwargs.items()))) if kwargs else ()
        except _UnknownError:
            return func(*args, **kwargs)
        if key in self.known:
            return self._made(self.known[key])
        result = func(*args, **kwargs)
        if not _tensors(args) & _tensors(result):
            with suppress(_UnknownError):
                self.known[key] = self._pattern(result)
        return result

    def like(self, value: Any) -> Any:
        """New tensors that look as these do, several as they are several; None where their shapes do not tell all."""
        with suppress(_UnknownError):
            return self._made(self._pattern(value))

    def _form(self, value: Any) -> Any:
        """All that an operator's result may depend on, to be looked up by: of a tensor a number, alone."""
        if isinstance(value, torch.Tensor):
            found = self.seen.get(id(value))
            return self._number(value) if found is None else found[1]
        if isinstance(value, (tuple, list)):
            return tuple([self._form(entry) for entry in value])
        if isinstance(value, torch.SymInt):
            return _size(value), id(value.node.shape_env)
        if isinstance(value, (torch.SymFloat, torch.SymBool)):
            raise _UnknownError
        try:
            hash(value)
        except TypeError:
            raise _UnknownError from None
        return type(value), value  # 1, 1.0 and True are equal

    def _number(self, tensor: torch.Tensor) -> int:
        form = _noted(tensor)
        number = self.numbers.setdefault(form, len(self.numbers))
        self.seen[id(tensor)] = tensor, number
        return number

    def _forget(self, value: Any) -> None:
        """The forms of tensors that an operator may change."""
        if isinstance(value, torch.Tensor):
            self.seen.pop(id(value), None)
        elif isinstance(value, (tuple, list)):
            for entry in value:
                self._forget(entry)

    def _pattern(self, value: Any) -> Any:
        """What to make new results from: several of a tuple or a list, a tensor's pattern, a device itself."""
        if isinstance(value, (tuple, list)):
            return (_Several if isinstance(value, tuple) else list)(self._pattern(entry) for entry in value)
        if isinstance(value, (torch.device, torch.dtype, torch.layout)):
            return value
        _noted(value)
        pattern = _Pattern(value)
        return pattern, self._number(pattern.made())

    def _made(self, pattern: Any) -> Any:
        """New tensors of these patterns."""
        if isinstance(pattern, list):
            return (tuple if isinstance(pattern, _Several) else list)(self._made(entry) for entry in pattern)
        if not isinstance(pattern, tuple):
            return pattern
        tensor = pattern[0].made()
        self.seen[id(tensor)] = tensor, pattern[1]
        return tensor


class _Pattern:
    """A tensor without memory, of which there may be many."""

    def __init__(self, like: FakeTensor) -> None:
        shape, strides, offset = like.shape, like.stride(), like.storage_offset()
        with torch._C._DisableTorchDispatch():
            self.meta = torch.empty_strided(shape, strides, dtype=like.dtype, device="meta")
            if offset:
                whole = torch.empty(
                    self.meta.untyped_storage().nbytes() // like.element_size() + offset,
                    dtype=like.dtype,
                    device="meta",
                )
                self.meta = whole.as_strided(shape, strides, offset)
        self.device = like.fake_device
        self.state = dict(vars(FakeTensor(like.fake_mode, self.meta, self.device)))

    def made(self) -> FakeTensor:
        """One more: FakeTensor makes the first, and what it sets besides is the same for all (a third of the time)."""
        made = torch.Tensor._make_subclass(
            FakeTensor, self.meta, False, dispatch_device=True, device_for_backend_keys=self.device
        )
        torch._C._set_throw_on_mutable_data_ptr(made)
        vars(made).update(self.state)
        return made


def _tensors(value: Any) -> set[int]:
    if isinstance(value, (tuple, list)):
        return {found for entry in value for found in _tensors(entry)}
    return {id(value)} if isinstance(value, torch.Tensor) else set()


@cache
def _is_pure(func: Any) -> bool:
    inner = getattr(func, "_op", None)  # ExecuTorch's operators hold torch's
    operator = inner if isinstance(inner, torch._ops.OpOverload) else func
    return isinstance(operator, torch._ops.OpOverload) and not operator._schema.is_mutable


def _noted(value: Any) -> Form:
    """A tensor's form: its shape, strides, offset, dtype, device and mode.

    Raises:
        _UnknownError: it has values, or sizes that depend on some.
    """
    plain = isinstance(value, FakeTensor) and value.constant is None and value.layout == torch.strided
    if not plain or value.is_conj() or value.is_neg():
        raise _UnknownError
    sizes = tuple([_size(size) for size in (*value.shape, *value.stride(), value.storage_offset())])
    return sizes, value.dtype, value.fake_device, value.fake_mode


def _size(size: Any) -> Any:
    """A number, or the formula of a symbolic one as it was written: what torch has replaced in it since stays the same."""
    if type(size) is int:
        return size
    node = size.node
    if type(node) is not SymNode or free_unbacked_symbols(size):  # each call makes a symbol of its own
        raise _UnknownError
    return node._expr
