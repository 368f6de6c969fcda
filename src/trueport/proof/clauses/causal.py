"""``causal``: the future changes nothing before it."""

from __future__ import annotations

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.result import Case


def ask(asked: Asked) -> list[Case]:
    """Other tokens from some position on, the same logits before it."""
    if asked.role == "encoder":
        raise NotApplicableError("an encoder reads both ways")
    length = asked.inputs.target_fits(10)
    cases = []
    for position in sorted({1, length // 2, length - 1} - {0}):
        name = f"future from {position} of {length}"
        batch = asked.inputs.full(name, 2, asked.inputs.fits(10), target=length)
        other = asked.inputs.with_other_future(f"other {name}", batch, position)
        try:
            before, after = asked.ask(batch), asked.ask(other)
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        past = np.zeros((batch.size, length), dtype=bool)
        past[:, :position] = True
        cases.append(asked.compare(name, other, {"logits": after["logits"]}, before, only={"logits": past}))
    return cases
