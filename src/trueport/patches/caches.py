"""Pytree nodes for caches, model outputs and the user's own states: torch.export can take them in and hand them out.

One way of flattening serves every class: attributes that hold tensors are children, in sorted order, everything else is
context. A class that somebody else registered, transformers included, keeps what it has.
"""

from __future__ import annotations

import copy
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

from trueport.errors import TrueportError

Class = TypeVar("Class", bound=type)

CACHE_NAME = re.compile(r"(Cache|CacheLayer)$")
"""How transformers' modelling files name the caches that share no base class (xLSTM's, Mimi's, Reformer's)."""

_lock = threading.RLock()
_states: set[type] = set()


def state(cls: Class) -> Class:
    """Class decorator: instances may be inputs and outputs of an exported module; their tensors are its state.

    Every attribute that holds a tensor (also within lists, tuples, dicts and other states) becomes an input or output;
    every other attribute is a constant of the export. The class may have any ``__init__``: it is not called.
    """
    if not isinstance(cls, type):
        raise TrueportError(
            f"trueport.state was given {cls!r}, which is not a class", "Put @trueport.state on a class."
        )
    _states.add(cls)
    register([cls])
    return cls


@contextmanager
def registered_caches() -> Iterator[list[type]]:
    """Every cache class alive is a pytree node inside; afterwards those that were not one before no longer are."""
    added = register(cache_classes())
    try:
        yield added
    finally:
        unregister(added)


def cache_classes() -> list[type]:
    """The cache and cache layer classes of transformers and their subclasses, wherever they are defined, as loaded now.

    Nothing is imported: a class that was never loaded has no instance.
    """
    utils = sys.modules.get("transformers.cache_utils")
    if utils is None:
        return []
    names = ("Cache", "CacheLayerMixin", "LinearAttentionCacheLayerMixin", "DummyLayer")
    found: dict[type, None] = {}
    waiting = [vars(utils)[name] for name in names if name in vars(utils)]
    for name, module in list(sys.modules.items()):
        if name.startswith("transformers.models.") and ".modeling_" in name:
            own = (cls for cls in vars(module).values() if isinstance(cls, type) and cls.__module__ == name)
            waiting += [cls for cls in own if CACHE_NAME.search(cls.__name__) and not issubclass(cls, torch.nn.Module)]
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found[cls] = None
            waiting += cls.__subclasses__()
    return list(found)


def unknown_classes(value: Any) -> list[type]:
    """Classes within ``value`` that hold tensors and that pytree takes for leaves."""
    found: dict[type, None] = {}
    for leaf in pytree.tree_leaves(value):
        attributes = getattr(leaf, "__dict__", None)
        if isinstance(leaf, (torch.Tensor, torch.nn.Module, type)) or not isinstance(attributes, dict):
            continue
        if any(_holds_tensors(part) or unknown_classes(part) for part in attributes.values()):
            found[type(leaf)] = None
    return list(found)


def register(classes: Iterable[type]) -> list[type]:
    """Register those that pytree does not know yet, and say which these were."""
    added = []
    with _lock:
        for cls in classes:
            if cls in pytree.SUPPORTED_NODES:
                continue
            pytree._private_register_pytree_node(
                cls,
                _flatten,
                _unflatten,
                serialized_type_name=f"{cls.__module__}.{cls.__qualname__}",
                to_dumpable_context=_dumpable,
                from_dumpable_context=_from_dumpable,
                flatten_with_keys_fn=_flatten_with_keys,
            )
            if cls not in fx_pytree.SUPPORTED_NODES:
                fx_pytree.register_pytree_flatten_spec(cls, lambda value, spec: _flatten(value)[0])
            added.append(cls)
    return added


def unregister(classes: Iterable[type]) -> None:
    """Undo ``register``."""
    with _lock:
        for cls in classes:
            if cls in pytree.SUPPORTED_NODES and pytree.SUPPORTED_NODES[cls].flatten_fn is _flatten:
                pytree._deregister_pytree_node(cls)
                fx_pytree._deregister_pytree_flatten_spec(cls)


def _holds_tensors(value: Any) -> bool:
    leaves = pytree.tree_leaves(value)
    return any(isinstance(leaf, (torch.Tensor, torch.SymInt)) for leaf in leaves)


def _is_child(value: Any) -> bool:
    """Whether an attribute is part of the tree: it has tensors, or registered objects that may get some."""
    if isinstance(value, (list, tuple, dict)):
        entries = value.values() if isinstance(value, dict) else value
        return any(_is_child(entry) for entry in entries)
    known = type(value) in pytree.SUPPORTED_NODES and pytree.SUPPORTED_NODES[type(value)].flatten_fn is _flatten
    return known or _holds_tensors(value)


def _attributes(value: Any) -> dict[str, Any]:
    attributes = dict(getattr(value, "__dict__", {}))
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and hasattr(value, name):
                attributes[name] = getattr(value, name)
    return attributes


def _flatten(value: Any) -> tuple[list[Any], Any]:
    """Children, and the context: (class, names of the children, the other attributes by name)."""
    attributes = _attributes(value)
    names = sorted(name for name, part in attributes.items() if _is_child(part))
    rest = {name: _copied(attributes[name]) for name in sorted(set(attributes) - set(names))}
    return [attributes[name] for name in names], (type(value), tuple(names), rest)


def _flatten_with_keys(value: Any) -> tuple[list[tuple[pytree.KeyEntry, Any]], Any]:
    children, context = _flatten(value)
    return [(pytree.GetAttrKey(name), child) for name, child in zip(context[1], children, strict=True)], context


def _unflatten(children: Iterable[Any], context: Any) -> Any:
    cls, names, rest = context
    value = cls.__new__(cls)
    for name, part in (*zip(names, children, strict=True), *rest.items()):
        object.__setattr__(value, name, part if name in names else _copied(part))
    return value


def _copied(value: Any) -> Any:
    """Containers anew, so that neither object changes with the other; what they hold is shared."""
    return copy.copy(value) if isinstance(value, (dict, list, set)) else value


def _dumpable(context: Any) -> Any:
    cls, names, rest = context
    return [
        f"{cls.__module__}.{cls.__qualname__}",
        list(names),
        {name: _encode(name, part) for name, part in rest.items()},
    ]


def _encode(name: str, value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (torch.dtype, torch.device)):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    if isinstance(value, type):
        return {"class": f"{value.__module__}.{value.__qualname__}"}
    if isinstance(value, (list, tuple, set)):
        return {type(value).__name__: [_encode(name, part) for part in value]}
    if isinstance(value, dict):
        return {"dict": [[_encode(name, key), _encode(name, part)] for key, part in value.items()]}
    raise TrueportError(
        f"The attribute {name} of a cache is a {type(value).__name__} and cannot be written to a file",
        "Export to a target in the same process, or keep it out of the cache.",
    )


def _from_dumpable(content: Any) -> Any:
    cls, names, rest = content
    return _known_class(cls), tuple(names), {name: _decode(part) for name, part in rest.items()}


def _decode(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    ((kind, content),) = value.items()
    if kind == "class":
        return _known_class(content)
    if kind == "dtype":
        return getattr(torch, content)
    if kind == "device":
        return torch.device(content)
    if kind == "dict":
        return {_decode(key): _decode(part) for key, part in content}
    return {"list": list, "tuple": tuple, "set": set}[kind](_decode(part) for part in content)


def _known_class(name: str) -> type:
    """A class that is loaded and is a cache or a state: a file cannot name any other."""
    for cls in (*cache_classes(), *_states):
        if name == f"{cls.__module__}.{cls.__qualname__}":
            return cls
    raise TrueportError(
        f"The file names the class {name}, which is no cache that is loaded here",
        "Import the module that defines it, with its @trueport.state, before the file is opened.",
    )
