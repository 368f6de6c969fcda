"""``inert``: what lies under the mask changes nothing at real positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.clauses.padding import masks
from trueport.proof.inputs import Batch
from trueport.proof.reference import OriginalError, Reference
from trueport.proof.result import Case

Answer = dict[str, np.ndarray]
"""Outputs by name."""
One = TypeVar("One")
Pair = tuple[One, One]

SEEN = 0.1
"""Share of what masked tokens would change without a mask. Under one they change nothing, to the last bit, but for roundings
where experts work in groups; the ten roundings allowed elsewhere may hide all of it in halves, and a lost mask."""


def ask(asked: Asked) -> list[Case]:
    """Other tokens under the mask, the same answers; where the original itself reads them, the original's answers."""
    asked.require_mask()
    cases = []
    for name, mask in masks(asked, whole=True).items():
        batch = asked.inputs.draw(f"inert {name}", mask)
        other = asked.inputs.scrambled(f"scrambled {name}", batch)
        try:
            before, after = asked.ask(batch), asked.ask(other)
            found = [_judged(asked, name, output, (batch, other), (before, after)) for output in after]
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        cases.append(max(found, key=lambda case: case.ratio))
    return cases


def _judged(asked: Asked, name: str, output: str, batches: Pair[Batch], answers: Pair[Answer]) -> Case:
    """One output under other tokens against itself; where it changes, it depends on what the original does."""
    batch, other = batches
    before, after = ({output: answer[output]} for answer in answers)
    real = {output: _real(asked, output, batch)}
    case = asked.compare(name, other, after, before, only=real)
    if case.error == 0 or asked.exact is None or output not in asked.exact.names:
        return case
    exact = asked.exact
    if asked.quantised is None:
        bare = [replace(one, mask=np.ones_like(one.mask)) for one in batches]
        most = SEEN * _change(exact, bare, output, real[output])
        if 0 < most < case.budget:
            case = replace(case, budget=most, note="against a tenth of what the same tokens change without a mask")
    if case.failed and _change(exact, batches, output, real[output]) > case.budget:
        words = "the original itself reads what lies under the mask; against it on the same tokens"
        return asked.compare(name, other, after, exact.forward(other), only=real, note=words)
    return case


def _change(exact: Reference, batches: Sequence[Batch], output: str, real: np.ndarray) -> float:
    """How far the original's answers to two batches are apart at real positions; 0 where it has none."""
    try:
        one, other = (exact.forward(batch)[output] for batch in batches)
    except OriginalError:
        return 0.0
    difference = np.abs(one - other)
    return float(difference[np.broadcast_to(real, difference.shape[: real.ndim])].max(initial=0.0))


def _real(asked: Asked, output: str, batch: Batch) -> np.ndarray:
    """Positions to compare; a pooler reads its first token, real or not, which only the original can tell."""
    real = asked.real(output, batch)
    counts = batch.mask.any(axis=1)
    if real.ndim == 1 and asked.exact is None:
        counts = batch.mask[:, 0] == 1
    return real & counts.reshape((-1,) + (1,) * (real.ndim - 1))
