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
from trueport.proof.result import Case

Answer = dict[str, np.ndarray]
"""Outputs by name."""
One = TypeVar("One")
Pair = tuple[One, One]

SEEN = 0.1
"""Share of what masked tokens would change without a mask. Under one they change nothing, to the last bit, but for roundings
where experts work in groups; the ten roundings allowed elsewhere may hide all of it in halves, and a lost mask."""
MATTERS = {True: 0.001, False: 0.1}
"""Share of the budget past which these changes are no rounding: where float64 tells them, and where the artefact does."""


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
    """One output under other tokens; where it changes, against what it changes without a mask, or the original does."""
    batch, other = batches
    before, after = ({output: answer[output]} for answer in answers)
    real = {output: _real(asked, output, batch)}
    case = asked.compare(name, other, after, before, only=real)
    if not case.error:
        return case
    exact = asked.exact if asked.exact is not None and output in asked.exact.names else None
    bare = [replace(one, mask=np.ones_like(one.mask)) for one in batches]
    seen = _change([exact.forward(one) if exact else asked.ask(one) for one in bare], output, real[output])
    if seen > MATTERS[exact is not None] * case.budget and SEEN * seen < case.budget:
        case = replace(case, budget=SEEN * seen, note="against a tenth of what the same tokens change without a mask")
    if case.failed and exact is not None:
        truth = [exact.forward(one) for one in batches]
        if _change(truth, output, real[output]) > case.budget:
            words = "the original itself reads what lies under the mask; against it on the same tokens"
            return asked.compare(name, other, after, truth[1], only=real, note=words)
    return case


def _change(answers: Sequence[Answer], output: str, real: np.ndarray) -> float:
    """How far two answers are apart at real positions."""
    difference = np.abs(answers[0][output] - answers[1][output])
    return float(difference[np.broadcast_to(real, difference.shape[: real.ndim])].max(initial=0.0))


def _real(asked: Asked, output: str, batch: Batch) -> np.ndarray:
    """Positions to compare; a pooler reads its first token, real or not, which only the original can tell."""
    real = asked.real(output, batch)
    counts = batch.mask.any(axis=1)
    if real.ndim == 1 and asked.exact is None:
        counts = batch.mask[:, 0] == 1
    return real & counts.reshape((-1,) + (1,) * (real.ndim - 1))
