"""Local variables as a graph sees them: which stay Python, which become outputs, and of what dtype and shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from trueport.errors import RewriteError

Number = (bool, int, float)
Symbolic = (torch.SymBool, torch.SymInt, torch.SymFloat)


class Undefined:
    """The value of a local variable that was not assigned yet; no correct program reads it."""

    def __repr__(self) -> str:
        return "undefined"


UNDEFINED = Undefined()


def python_bool(tensor: torch.Tensor) -> torch.Tensor:
    """A bool tensor of shape () as what stands for one of Python's bools, of which two make a number together."""
    tensor.trueport_python_bool = True  # type: ignore[attr-defined]
    return tensor


def is_python_bool(value: Any) -> bool:
    """Whether ``python_bool`` made it, or it is one."""
    return isinstance(value, bool) or bool(getattr(value, "trueport_python_bool", False))


@dataclass(frozen=True)
class Slot:
    """A leaf of a variable.

    A constant keeps its Python ``value``. Any other becomes an output of the graph: ``like`` has its dtype and its shape.
    """

    value: Any
    like: torch.Tensor | None = None


@dataclass(frozen=True)
class Plan:
    """How the values of ``names`` are split into graph outputs and Python constants."""

    names: tuple[str, ...]
    specs: tuple[pytree.TreeSpec, ...]
    slots: tuple[tuple[Slot, ...], ...]

    def outputs(self, values: Sequence[Any], outer: Any = None) -> list[torch.Tensor]:
        """The tensors that a graph gives back for these values; ``outer`` maps tensors from outside to operands."""
        results = []
        for spec, slots, value in zip(self.specs, self.slots, values, strict=True):
            leaves = [value] * len(slots) if value is UNDEFINED else spec.flatten_up_to(value)
            for slot, leaf in zip(slots, leaves, strict=True):
                if slot.like is not None:
                    leaf = outer(leaf) if outer is not None and isinstance(leaf, torch.Tensor) else leaf
                    results.append(as_tensor(leaf, slot.like))
        return results

    def of_one_shape(self, one: Sequence[Any], other: Sequence[Any]) -> bool:
        """Whether every output has the same shape on both ways."""
        for spec, slots, left, right in zip(self.specs, self.slots, one, other, strict=True):
            if left is UNDEFINED or right is UNDEFINED:
                continue
            for slot, a, b in zip(slots, spec.flatten_up_to(left), spec.flatten_up_to(right), strict=True):
                tensors = isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
                if slot.like is not None and tensors and [*map(str, a.shape)] != [*map(str, b.shape)]:
                    return False
        return True

    def rebuild(self, outputs: Sequence[torch.Tensor]) -> list[Any]:
        """The values, from the graph's outputs and the constants."""
        given = iter(outputs)
        values = []
        for spec, slots in zip(self.specs, self.slots, strict=True):
            leaves = [slot.value if slot.like is None else next(given) for slot in slots]
            values.append(pytree.tree_unflatten(leaves, spec))
        return values


def as_tensor(value: Any, like: torch.Tensor) -> torch.Tensor:
    """``value`` as a new contiguous tensor; of ``like``'s dtype and shape if it is a number or undefined.

    What a graph gives back may be no view of its inputs, and both branches must agree in strides: hence the copy.
    """
    if isinstance(value, torch.Tensor):
        if value.ndim == 0 and like.ndim > 0:
            value = value.expand(like.shape)
        return value.to(like.dtype).clone(memory_format=torch.contiguous_format)
    filled = 0 if value is UNDEFINED else value
    return torch.full(tuple(like.shape), filled, dtype=like.dtype, device=like.device)


def isolated(value: Any) -> Any:
    """The same tensors in new containers, so that a branch that is traced but not taken changes nobody's list."""
    return pytree.tree_map(lambda leaf: leaf, value)


def same(one: Any, other: Any) -> bool:
    """Whether two leaves are the same Python value in every run of the graph."""
    if one is other:
        return True
    if isinstance(one, (torch.Tensor, *Symbolic)) or isinstance(other, (torch.Tensor, *Symbolic)):
        return False
    try:
        return type(one) is type(other) and bool(one == other)
    except Exception:
        return False


def join(name: str, one: Any, other: Any, where: str) -> Slot:
    """What a leaf is after a branch, from its values in the two branches.

    Raises:
        RewriteError: it is Python in nature and differs.
    """
    if same(one, other):
        return Slot(one)
    if one is UNDEFINED or other is UNDEFINED:
        known = other if one is UNDEFINED else one
        return Slot(known, known) if isinstance(known, torch.Tensor) else Slot(known)
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return _tensors(name, one, other, where)
    numbers = (*Number, *Symbolic)
    if isinstance(one, torch.Tensor) and isinstance(other, numbers):
        return Slot(one, _widened(name, one, other, where))
    if isinstance(other, torch.Tensor) and isinstance(one, numbers):
        return Slot(other, _widened(name, other, one, where))
    if isinstance(one, numbers) and isinstance(other, numbers):
        dtype = torch.promote_types(number_dtype(one), number_dtype(other))
        return Slot(one, torch.empty((), dtype=dtype))
    raise RewriteError(
        f"{where}: the variable {name} is {_kind(one)} on one way and {_kind(other)} on the other, which a graph cannot "
        "decide when it runs",
        "Give it the same Python value on both ways, or a tensor on both.",
    )


def _tensors(name: str, one: torch.Tensor, other: torch.Tensor, where: str) -> Slot:
    if one.dtype != other.dtype:
        raise RewriteError(
            f"{where}: the variable {name} is {_kind(one)} on one way and {_kind(other)} on the other",
            f"Convert one of them with `.to({one.dtype})`.",
        )
    if one.ndim != other.ndim:
        raise RewriteError(
            f"{where}: the variable {name} has {one.ndim} axes on one way and {other.ndim} on the other",
            "Give it the same number of axes, with `unsqueeze` or `reshape`.",
        )
    return Slot(one, one)


def _widened(name: str, tensor: torch.Tensor, number: Any, where: str) -> torch.Tensor:
    if torch.can_cast(number_dtype(number), tensor.dtype):
        return tensor
    raise RewriteError(
        f"{where}: the variable {name} is {_kind(tensor)} on one way and {_kind(number)} on the other",
        f"Write {tensor.dtype} values on both ways.",
    )


def number_dtype(number: Any) -> torch.dtype:
    """The dtype that a Python number has among tensors."""
    if isinstance(number, (bool, torch.SymBool)):
        return torch.bool
    return torch.int64 if isinstance(number, (int, torch.SymInt)) else torch.get_default_dtype()


def _kind(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"a {str(value.dtype).removeprefix('torch.')} tensor of shape {tuple(value.shape)}"
    if value is None or isinstance(value, (*Number, str)):
        return repr(value)
    return f"a {type(value).__name__}"


def plan(names: Sequence[str], one: Sequence[Any], other: Sequence[Any], where: str) -> Plan:
    """How the values after a branch are held, from the values that each way gives."""
    specs, slots = [], []
    for name, left, right in zip(names, one, other, strict=True):
        left_leaves, left_spec = pytree.tree_flatten(left)
        right_leaves, right_spec = pytree.tree_flatten(right)
        if left is UNDEFINED:
            left_leaves, left_spec = [UNDEFINED] * len(right_leaves), right_spec
        elif right is UNDEFINED:
            right_leaves, right_spec = [UNDEFINED] * len(left_leaves), left_spec
        if left_spec != right_spec:
            raise RewriteError(
                f"{where}: the variable {name} is {_shape_of(left)} on one way and {_shape_of(right)} on the other",
                "Give it the same structure on both ways; a list may not grow on one of them only.",
            )
        specs.append(left_spec)
        slots.append(tuple(join(name, a, b, where) for a, b in zip(left_leaves, right_leaves, strict=True)))
    return Plan(tuple(names), tuple(specs), tuple(slots))


def _shape_of(value: Any) -> str:
    if isinstance(value, (list, tuple, dict)):
        return f"a {type(value).__name__} of {len(value)}"
    return _kind(value)
