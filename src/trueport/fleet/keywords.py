"""Which keywords of ``trueport.export`` a plan may give, and of which kind: read from its signature."""

from __future__ import annotations

import inspect
import re
from functools import cache
from typing import Any

KINDS: dict[str, type] = {
    "str": str, "Path": str, "int": int, "float": float, "bool": bool, "Sequence[str]": list,
}  # fmt: skip
"""What stands in an annotation, and what TOML has for it."""
OWN = ("model", "out")
"""What a plan says in its own way: the model by a key of its own, the place by the entry's name."""
SWITCH = "tokenizer"
"""``auto`` or None, which a plan, as the command, gives as true or false."""
KIND_WORDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", list: "a list of texts"}


@cache
def known() -> dict[str, tuple[type, ...]]:
    """The keywords that a plan may give, each with the kinds of value that it takes."""
    found: dict[str, tuple[type, ...]] = {SWITCH: (bool,)}
    for name, parameter in _parameters().items():
        words = re.split(r"\s*\|\s*", str(parameter.annotation))
        kinds = tuple(dict.fromkeys(KINDS[word] for word in words if word in KINDS))
        if kinds and name not in OWN:
            found[name] = kinds
    return found


@cache
def living() -> tuple[str, ...]:
    """The keywords that take objects, which no file can hold."""
    return tuple(name for name in _parameters() if name not in known() and name not in OWN)


def defaults() -> dict[str, Any]:
    """What ``export`` takes where nothing is given."""
    return {name: parameter.default for name, parameter in _parameters().items() if name in known()}


def fits(name: str, value: Any) -> bool:
    """Whether a value from a plan is of a kind that the keyword takes."""
    kinds = known()[name]
    if isinstance(value, bool):
        return bool in kinds
    if isinstance(value, list):
        return list in kinds and all(isinstance(entry, str) for entry in value)
    return isinstance(value, kinds) or (isinstance(value, int) and float in kinds)


def kind_words(name: str) -> str:
    """The kinds that a keyword takes, in words."""
    return " or ".join(KIND_WORDS[kind] for kind in known()[name])


def for_export(options: dict[str, Any]) -> dict[str, Any]:
    """A plan's options as ``export`` takes them."""
    if SWITCH not in options:
        return dict(options)
    return options | {SWITCH: "auto" if options[SWITCH] else None}


def _parameters() -> dict[str, inspect.Parameter]:
    from trueport.pipeline import export

    return dict(inspect.signature(export).parameters)
