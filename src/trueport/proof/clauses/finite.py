"""``finite``: no NaN and no infinity on extreme but legal inputs, wholly masked rows included."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.inputs import Batch, left, right
from trueport.proof.result import Case


def ask(asked: Asked) -> list[Case]:
    """Every output of every extreme batch is finite, at padded positions too: they enter caches."""
    cases = []
    for name, batch in extremes(asked):
        try:
            got = asked.ask(batch)
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        wrong = sum(int((~np.isfinite(value)).sum()) for value in got.values())
        note = ""
        if wrong and asked.own is not None:
            original = asked.own.forward(batch)
            inherited = {key: ~np.isfinite(original[key]) for key in got}
            if any(lost.any() for lost in inherited.values()):
                note = "the original itself is not finite everywhere here"
            wrong = sum(int((~np.isfinite(value) & ~inherited[key]).sum()) for key, value in got.items())
        cases.append(Case(name, float(wrong), 0.0, batch.to_json() if wrong else None, note))
    return cases


def extremes(asked: Asked) -> Iterator[tuple[str, Batch]]:
    """Legal batches, by the name of their case, that real text never comes near."""
    inputs = asked.inputs
    length = inputs.fits(9)
    yield "one token", inputs.full("one token", 1, 1)
    if inputs.features is not None:
        batch = inputs.full("silence", 2, length)
        yield "all zeros", Batch(np.zeros_like(batch.ids), batch.mask, batch.target, batch.types)
        return
    if inputs.sound:
        batch = inputs.full("silence", 2, length)
        for name, factor in (("silence", 0), ("a hundred times as loud", 100)):
            yield name, replace(batch, ids=batch.ids * batch.ids.dtype.type(factor))
        yield from _masked(asked, length)
        return
    for name, token in (("the first token only", 0), ("the last token only", inputs.vocabulary - 1)):
        batch = inputs.full(name, 2, length)
        ids = inputs.ended(np.full_like(batch.ids, token), batch.mask)
        yield name, Batch(ids, batch.mask, batch.target, batch.types)
    yield from _masked(asked, length)


def _masked(asked: Asked, length: int) -> Iterator[tuple[str, Batch]]:
    """Rows of which nothing, or hardly anything, is real."""
    inputs = asked.inputs
    if asked.masked:
        yield "a row wholly masked", inputs.draw("wholly masked", right(length, [0, length]))
        yield "every row wholly masked", inputs.draw("all masked", right(length, [length, length]))
        if length > 1:
            yield "one real token at the right", inputs.draw("one at the right", left(length, [length - 1, 0]))
