"""The clauses of a proof, one module each, in the order in which they are asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.clauses import (
    cache,
    causal,
    finite,
    generate,
    inert,
    padding,
    quality,
    ranges,
    shapes,
    state,
    window,
)
from trueport.proof.result import Case

CLAUSES: dict[str, Callable[[Asked], Sequence[Case]]] = {
    "shapes": shapes.ask,
    "padding": padding.ask,
    "inert": inert.ask,
    "causal": causal.ask,
    "cache": cache.ask,
    "window": window.ask,
    "generate": generate.ask,
    "finite": finite.ask,
    "range": ranges.ask,
    "state": state.ask,
    "quality": quality.ask,
}
"""Each clause's question by its name; it raises NotApplicableError where it has none."""


ALWAYS = ("files", "assets")
"""Clauses about the folder itself, which ``verify`` asks besides those that are chosen."""


def check_names(names: Sequence[str] | None) -> list[str]:
    """The chosen clauses in their order.

    Raises:
        TrueportError: a name is none of them.
    """
    if names is None:
        return list(CLAUSES)
    for name in names:
        if name not in CLAUSES:
            if name in ALWAYS:
                raise TrueportError(
                    f"{name} is no clause to choose", "verify always asks files, and assets with --against."
                )
            raise TrueportError(f"There is no clause {name}", f"The clauses are: {', '.join(CLAUSES)}.")
    return [name for name in CLAUSES if name in names]
