"""``inert``: what lies under the mask changes nothing at real positions."""

from __future__ import annotations

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.clauses.padding import masks
from trueport.proof.inputs import Batch
from trueport.proof.result import Case


def ask(asked: Asked) -> list[Case]:
    """Other tokens under the mask, the same answers; where the original itself reads them, the original's answers."""
    asked.require_mask()
    cases = []
    for name, mask in masks(asked, whole=True).items():
        batch = asked.inputs.draw(f"inert {name}", mask)
        other = asked.inputs.scrambled(f"scrambled {name}", batch)
        try:
            before, after = asked.ask(batch), asked.ask(other)
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        real = {output: _real(asked, output, batch) for output in after}
        case = asked.compare(name, other, after, before, only=real)
        if case.failed and asked.exact is not None:
            original = asked.exact.forward(other)
            if asked.compare(name, other, asked.exact.forward(batch), original, only=real).failed:
                words = "the original itself reads what lies under the mask; against it on the same tokens"
                case = asked.compare(name, other, after, original, only=real, note=words)
        cases.append(case)
    return cases


def _real(asked: Asked, output: str, batch: Batch) -> np.ndarray:
    """Positions to compare; a pooler reads its first token, real or not, which only the original can tell."""
    real = asked.real(output, batch)
    counts = batch.mask.any(axis=1)
    if real.ndim == 1 and asked.exact is None:
        counts = batch.mask[:, 0] == 1
    return real & counts.reshape((-1,) + (1,) * (real.ndim - 1))
