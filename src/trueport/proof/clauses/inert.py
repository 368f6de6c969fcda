"""``inert``: what lies under the mask changes nothing at real positions."""

from __future__ import annotations

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.clauses.padding import masks
from trueport.proof.result import Case


def ask(asked: Asked) -> list[Case]:
    """Other tokens under the mask, the same answers; where the original itself reads them, the original's answers."""
    asked.require_mask()
    cases = []
    for name, mask in masks(asked).items():
        batch = asked.inputs.draw(f"inert {name}", mask)
        other = asked.inputs.scrambled(f"scrambled {name}", batch)
        try:
            before, after = asked.ask(batch), asked.ask(other)
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        dead = {name: asked.real(name, batch) & batch.mask.any(1).reshape((-1,) + (1,) * (asked.real(name, batch).ndim - 1))
                for name in after}
        case = asked.compare(name, other, after, before, only=dead)
        if case.failed and asked.exact is not None:
            original = asked.exact.forward(other)
            if asked.compare(name, other, asked.exact.forward(batch), original, only=dead).failed:
                words = "the original itself reads what lies under the mask; against it on the same tokens"
                case = asked.compare(name, other, after, original, only=dead, note=words)
        cases.append(case)
    return cases
