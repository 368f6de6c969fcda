"""Rows of layers that repeat, found by what the layers are made of."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

PERIODS = 3
"""Repetitions that are traced: the first, which also computes what all share, one to copy, and the last."""
WORTH = 4
"""Layers that have to be spared for the way by stamping to be the shorter one."""
OWN = frozenset(vars(nn.Module()))
"""Attributes that every module has."""
HOOKS = ("_forward_pre_hooks", "_forward_hooks")
"""Those that hold what runs before and behind a module."""


@dataclass(frozen=True)
class Stack:
    """Layers of one container: some first ones, ``repeats`` times a period of them, and some last ones.

    Attributes:
        path: of the container in the component's module.
        keys: the layers' names in it.
        first: index of the first layer that repeats.
        period: layers that repeat together, such as Gemma 3's six.
        repeats: how often.
    """

    path: str
    keys: tuple[str, ...]
    first: int
    period: int
    repeats: int

    @property
    def left_out(self) -> range:
        """Indices of the layers that need no tracing: all between the second and the last repetition."""
        return range(self.start(2), self.start(self.repeats - 1))

    @property
    def spared(self) -> int:
        """How many these are."""
        return len(self.left_out)

    def start(self, block: int) -> int:
        """Index of the first layer of a repetition."""
        return self.first + block * self.period

    def layer(self, index: int) -> str:
        """The path of a layer."""
        return f"{self.path}.{self.keys[index]}"

    def place(self, name: str) -> tuple[int, str] | None:
        """The index of the layer that a parameter or a module belongs to, and the rest of its name."""
        if not name.startswith(f"{self.path}."):
            return None
        key, _, rest = name.removeprefix(f"{self.path}.").partition(".")
        return (self.indices[key], rest) if key in self.indices else None

    @cached_property
    def indices(self) -> dict[str, int]:
        """Layers by their names in the container."""
        return {key: index for index, key in enumerate(self.keys)}


def stacks_of(module: nn.Module, config: Any) -> list[Stack]:
    """The rows of repeating layers that are worth stamping, the longest first.

    Args:
        module: of a component.
        config: the model's; its lists with an entry for each layer, such as ``layer_types``, tell layers apart.
    """
    lists = list(_lists(config))
    return sorted(_found(module, "", lists), key=lambda stack: -stack.spared)


def unlike(module: nn.Module) -> str:
    """The path of a row of layers of one class that is long enough to be stamped; empty where there is none."""
    for name, child in module.named_modules():
        layers = list(child.children()) if isinstance(child, nn.ModuleList) else []
        if len(layers) >= PERIODS + WORTH and len({type(layer) for layer in layers}) == 1:
            return name
    return ""


def _found(module: nn.Module, path: str, lists: list[Any]) -> Iterator[Stack]:
    for name, child in module.named_children():
        place = f"{path}.{name}" if path else name
        stack = _stack(child, place, lists) if isinstance(child, (nn.ModuleList, nn.Sequential)) else None
        if stack is not None and stack.spared >= WORTH:
            yield stack
        else:
            yield from _found(child, place, lists)


def _stack(container: nn.Module, path: str, lists: list[Any]) -> Stack | None:
    layers = dict(container.named_children())  # a module that stands in two places is one child only
    count = len(container._modules)
    if count <= PERIODS or len(layers) != count:
        return None
    own = [entries for entries in lists if len(entries) == count]
    forms = []
    for index, layer in enumerate(layers.values()):
        numbers: list[int] = []
        form = _structure(layer, numbers), tuple(repr(entries[index]) for entries in own)
        forms.append((form, numbers))
    best = None
    for period in range(1, count // (PERIODS + 1) + 1):
        alike = [_alike(forms[k], forms[k + period], period) for k in range(count - period)]
        first, length = _longest(alike)
        stack = Stack(path, tuple(layers), first, period, (length + period) // period)
        if stack.repeats > PERIODS and (best is None or stack.spared > best.spared):
            best = stack
    return best


def _alike(one: tuple[Any, list[int]], other: tuple[Any, list[int]], distance: int) -> bool:
    """Whether two layers are equal but for numbers that count the layers."""
    return one[0] == other[0] and all(b - a in (0, distance) for a, b in zip(one[1], other[1], strict=True))


def _longest(flags: list[bool]) -> tuple[int, int]:
    """Start and length of the longest row of true ones."""
    best, start = (0, 0), 0
    for index, flag in enumerate([*flags, False]):
        if not flag:
            if index - start > best[1]:
                best = (start, index - start)
            start = index + 1
    return best


def _structure(module: nn.Module, numbers: list[int]) -> Any:
    """What a module is made of; whole numbers, of which some may count the layers, go to ``numbers``."""
    from trueport.weights.linked import origin_of

    tensors = []
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        origin = origin_of(tensor)
        narrow = None if origin is None or origin.span is not None else origin.unwidened
        stored = None if narrow is None else narrow.dtype
        tensors.append((name, None if tensor is None else (tuple(tensor.shape), tensor.dtype, stored)))
    plain = {name: value for name, value in vars(module).items() if name not in OWN and not name.startswith("_")}
    attributes = tuple((name, _form(plain[name], numbers)) for name in sorted(plain))
    children = tuple((name, _structure(child, numbers)) for name, child in module.named_children())
    hooks = tuple((name, _form(tuple(vars(module)[name].values()), numbers)) for name in HOOKS)
    return type(module), module.training, tuple(tensors), attributes, hooks, children


def _form(value: Any, numbers: list[int]) -> Any:
    """A plain value itself; of another only its type: what it does is seen when the model runs."""
    if isinstance(value, int) and not isinstance(value, bool):
        numbers.append(value)
        return int
    if isinstance(value, (str, float, bool, torch.dtype, CodeType)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(_form(entry, numbers) for entry in value)
    if isinstance(value, Mapping):
        return tuple((str(key), _form(value[key], numbers)) for key in sorted(value, key=str))
    if isinstance(value, (FunctionType, MethodType)):
        bound = inspect.getclosurevars(getattr(value, "__func__", value)).nonlocals
        # One that it calls may hold this one in turn.
        held = {name: getattr(inner, "__code__", inner) for name, inner in bound.items()}
        return value.__code__, _form(value.__defaults__ or (), numbers), _form(held, numbers)
    return type(value)


def _lists(config: Any) -> Iterator[Any]:
    """Every list in a config and in the configs that it holds."""
    for value in vars(config).values() if hasattr(config, "__dict__") else ():
        if isinstance(value, (list, tuple)):
            yield value
        elif hasattr(value, "to_dict"):
            yield from _lists(value)
