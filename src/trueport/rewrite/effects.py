"""What a branch or a loop's body changes besides its variables: objects that outlive it.

Both branches of a graph are traced, so what each does to an object would happen whichever is taken. Such a branch is
found by comparing every container and attribute that its functions can reach, before it is traced and after.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import BuiltinMethodType, FunctionType, MethodType, MethodWrapperType, ModuleType
from typing import Any

import torch

from trueport.errors import RewriteError

REACHED = 50_000
"""Objects that are looked at, at most."""
PLAIN = (bool, int, float, complex, str, bytes, type(None), torch.dtype, torch.device, torch.Size)
"""Values of which a new one that is equal is no change."""
CALLS = (FunctionType, MethodType, BuiltinMethodType, MethodWrapperType, functools.partial)
"""What reaches objects, and is none that changes."""


@dataclass(frozen=True)
class Seen:
    """An object, and what it consisted of: its keys, attributes or places by what lay there."""

    owner: Any
    parts: dict[Any, Any]


@contextmanager
def unchanged(pieces: Sequence[Callable[..., Any]], where: str, place: str = "this branch") -> Iterator[None]:
    """Refuse where an object that ``pieces`` can reach is another one after the block.

    Raises:
        RewriteError: it names the object.
    """
    before = _reached(pieces)
    yield
    for seen in before:
        now = _parts(seen.owner)
        for key in (*seen.parts, *(key for key in now if key not in seen.parts)):
            if key in now and key in seen.parts and _same(seen.parts[key], now[key]):
                continue
            raise RewriteError(
                f"{where}: {place} changes {_named(seen.owner, key)}, and an object cannot differ from run to run of one "
                "graph",
                "Assign to a local variable on both ways, and put it into the object after them.",
            )


@contextmanager
def restored(root: Any) -> Iterator[list[torch.Tensor]]:
    """Every list, dict, set and attribute that ``root`` reaches as it was; yields the tensors among them."""
    before = [(seen, _contents(seen.owner)) for seen in _reached([root])]
    tensors = {id(part): part for seen, _ in before for part in seen.parts.values() if isinstance(part, torch.Tensor)}
    try:
        yield list(tensors.values())
    finally:
        for seen, contents in before:
            now = _parts(seen.owner)
            if len(now) != len(seen.parts) or any(
                key not in now or now[key] is not seen.parts[key] for key in seen.parts
            ):
                _refill(seen.owner, contents)


def _contents(owner: Any) -> Any:
    if isinstance(owner, (list, dict, set, deque)):
        return owner.copy()
    return dict(vars(owner)) if hasattr(owner, "__dict__") else None


def _refill(owner: Any, contents: Any) -> None:
    if isinstance(owner, (list, deque)):
        owner.clear()
        owner.extend(contents)
    elif isinstance(owner, (dict, set)):
        owner.clear()
        owner.update(contents)
    elif contents is not None:
        vars(owner).clear()
        vars(owner).update(contents)


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, PLAIN) and type(one) is type(other) and one == other)


def _named(owner: Any, key: Any) -> str:
    kind = type(owner).__name__
    if isinstance(owner, (list, tuple, set, frozenset, deque)):
        return f"a {kind}"
    return f"{key!r} of a {kind}" if isinstance(owner, dict) else f"the attribute {key} of a {kind}"


def _reached(roots: Iterable[Any]) -> list[Seen]:
    """Everything that can be changed, from these functions' variables on."""
    waiting, found = deque(roots), list[Seen]()
    known: dict[int, Any] = {}  # kept alive: an id is unique among living objects only
    while waiting and len(known) < REACHED:
        value = waiting.popleft()
        if id(value) in known or isinstance(value, (*PLAIN, torch.Tensor, torch.SymInt, type, ModuleType)):
            continue
        known[id(value)] = value
        parts = _parts(value)
        if not isinstance(value, (*CALLS, tuple)):
            found.append(Seen(value, parts))
        waiting.extend(parts.values())
    return found


def _parts(value: Any) -> dict[Any, Any]:
    """What an object consists of, by key, attribute or place; of a function, the variables that it reads."""
    if isinstance(value, dict):
        return {_key(key): part for key, part in value.items()}
    if isinstance(value, (list, tuple, deque)):
        return dict(enumerate(value))
    if isinstance(value, (set, frozenset)):
        return {_key(part): part for part in value}
    if isinstance(value, FunctionType):
        return _variables(value)
    if isinstance(value, MethodType):
        return {"self": value.__self__, "function": value.__func__}
    if isinstance(value, (BuiltinMethodType, MethodWrapperType)):
        return {"self": value.__self__}
    if isinstance(value, functools.partial):
        return {"function": value.func, **dict(enumerate(value.args)), **value.keywords}
    parts = dict(vars(value)) if hasattr(value, "__dict__") else {}
    for kind in type(value).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if hasattr(value, name):
                parts[name] = getattr(value, name)
    return parts


def _key(key: Any) -> Any:
    """Strings and numbers as themselves, all else by identity: hashing an object may run its code."""
    return key if isinstance(key, PLAIN) else id(key)


def _variables(function: FunctionType) -> dict[Any, Any]:
    found: dict[Any, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # assigned later
            continue
    found |= {("default", number): value for number, value in enumerate(function.__defaults__ or ())}
    for name in function.__code__.co_names:
        value = function.__globals__.get(name)
        if value is not None and not isinstance(value, (FunctionType, type, ModuleType)) and not callable(value):
            found["global", name] = value
    return found
