"""Under which name a model takes its cache and gives it out: transformers renamed ``past_key_values`` to ``cache``.
Mamba calls its own ``cache_params``.

The name is asked of the class at hand, not of a version: code that came with a checkpoint keeps the one it was written
with. What an artefact's graphs call their tensors is another matter, and never changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import fields
from typing import Any

from torch import nn

from trueport.errors import CaptureError, RunError, TrueportError

NAMES = ("past_key_values", "cache", "cache_params")


def cache_name(module: nn.Module | type[nn.Module]) -> str | None:
    """By which name a module's forward takes its cache; None where it takes none."""
    return _one_of(inspect.signature(module.forward).parameters)


def field_name(kind: type[Any]) -> str:
    """By which name an output class of transformers gives out its cache.

    Raises:
        TrueportError: it gives out none.
    """
    name = _one_of(field.name for field in fields(kind))
    if name is None:
        raise TrueportError(
            f"transformers' {kind.__name__} has neither {' nor '.join(NAMES)}",
            "Install a version of transformers that Trueport knows (pip install trueport chooses one).",
        )
    return name


def given_cache(module: nn.Module, cache: Any) -> dict[str, Any]:
    """The cache as a keyword argument of the module's forward.

    Raises:
        CaptureError: it takes none.
    """
    name = cache_name(module)
    if name is None:
        raise CaptureError(
            f"{type(module).__name__}.forward takes neither {' nor '.join(NAMES)}, so it cannot go on from a cache",
            "Give --task feature-extraction for one pass without a state.",
        )
    return {name: cache}


def cache_of(result: Mapping[str, Any]) -> Any:
    """The cache in a model's output; None where it holds none.

    The keys are read, as transformers' outputs answer to a name that they no longer have with a warning.
    """
    name = _one_of(result.keys())
    return None if name is None else result[name]


def pop_cache(arguments: MutableMapping[str, Any]) -> Any:
    """Take the cache out of keyword arguments, by whichever name it was given; None where it was not.

    Raises:
        RunError: there are two.
    """
    given = [cache for name in NAMES if (cache := arguments.pop(name, None)) is not None]
    if len(given) > 1:
        raise RunError(f"A cache is given twice, as {' and as '.join(NAMES)}", "Leave one out.")
    return given[0] if given else None


def _one_of(names: Iterable[str]) -> str | None:
    found = set(names)
    return next((name for name in NAMES if name in found), None)
