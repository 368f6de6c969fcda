"""``padding``: real positions do not know of padding on the left, on the right, in holes, or in other rows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.clauses.shapes import rows_alone
from trueport.proof.inputs import Batch, holes, left, right
from trueport.proof.positions import made
from trueport.proof.result import Case


def ask(asked: Asked) -> list[Case]:
    """Every family of masks against the row alone, and where the original itself is not invariant, against it."""
    asked.require_mask()
    cases = []
    batches = {name: asked.inputs.draw("padding", mask) for name, mask in masks(asked).items()}
    for name, batch in (batches | _at_borders(asked)).items():
        try:
            got = asked.ask(batch)
            case = _judged(asked, name, batch, got)
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        if case.failed and name.startswith("holes") and _counts_for_itself(asked):
            assert asked.exact is not None
            note = "against the original under the same mask, without position_ids, as the graph takes none"
            case = min(case, asked.compare(name, batch, got, asked.exact.forward(batch, positions=False), note=note),
                       key=lambda case: case.ratio)  # fmt: skip
        cases.append(case)
    return cases


def _at_borders(asked: Asked) -> dict[str, Batch]:
    """Sound that ends with the last sample of a position, and one before: a length that is off by one shows nowhere else."""
    inputs = asked.inputs
    if not inputs.sound:
        return {}
    whole = inputs.full("borders", 4, 12)
    length = whole.mask.shape[1]
    axes = [shape[1] for shape in asked.outputs.values() if len(shape) > 1 and isinstance(shape[1], str)]
    ends = (n for n in range(inputs.sound + 1, length) for axis in axes
            if (made(axis, asked.padded, n) or 0) > (made(axis, asked.padded, n - 1) or 0))  # fmt: skip
    second = next(ends, length)
    counts = np.array([length, second - 1, inputs.sound, second])[-whole.size :]
    mask = (np.arange(length) < counts[:, None]).astype(np.int64)
    batch = replace(whole, ids=np.where(mask == 1, whole.ids, 0), mask=mask)
    return {f"rows of {', '.join(map(str, counts))} samples": batch}


def _counts_for_itself(asked: Asked) -> bool:
    """Whether a decoder's graph lacks the model's position_ids: how it counts holes is then its own choice."""
    lacks = asked.role == "decoder" and not asked.padded.has_input("position_ids")
    return lacks and asked.exact is not None and "position_ids" in asked.exact.takes


def masks(asked: Asked, *, whole: bool = False) -> dict[str, np.ndarray]:
    """The families, (batch, length): without the original only those that every model treats as no padding at all.

    Args:
        whole: give all of them, for a question that has an answer without the original; padding at the right is all that a
            mask over sound can mean.
    """
    length = asked.inputs.fits(12)
    few, many = min(3, (length - 1) // 2), min(7, length - 1)
    dead = right(length, [0, few, length])
    of = f"of {length} pieces of sound" if asked.inputs.sound else f"of {length}"
    families = {
        f"right 0, {few}, {many} {of}": right(length, [0, few, many]),
        f"one row wholly masked {of}": dead,
    }
    whole = (whole and not asked.inputs.sound) or asked.exact is not None
    if whole or asked.role == "decoder":
        # As many real tokens in each row as in the families above: the same questions to the original.
        both = left(length, [0, few - few // 2, many - few]) * right(length, [0, few // 2, few])
        families[f"left 0, {few}, {many} {of}"] = left(length, [0, few, many])
        families[f"both sides {of}"] = both
    if whole:
        families[f"holes in {of.removeprefix('of ')}"] = holes(length, 3, asked.inputs.rng("holes"))
    return families


def _judged(asked: Asked, name: str, batch: Batch, got: dict[str, np.ndarray]) -> Case:
    """Against the row alone; against the original under the same mask where its own nature makes that another thing."""
    if asked.exact is None:
        return asked.compare(name, batch, got, rows_alone(asked, batch))
    if name.startswith("holes"):
        note = "against the original under the same mask"
        return asked.compare(name, batch, got, _under_its_mask(asked, batch), note=note)
    if batch.mask.any(axis=1).all():
        alone = rows_alone(asked, batch, asked.exact.forward)
    else:
        alone = _beside_a_dead_row(asked, batch)
    case = asked.compare(name, batch, got, alone)
    if case.failed:
        padded = _under_its_mask(asked, batch)
        if asked.compare(name, batch, padded, alone).failed:
            note = "the original itself is not invariant here; against it under the same mask"
            return asked.compare(name, batch, got, padded, note=note)
    return case


def _under_its_mask(asked: Asked, batch: Batch) -> dict[str, np.ndarray]:
    """The original's answers in float64, and in its own dtype where those are none.

    A hole as wide as a window leaves a query without keys. Of its NaN, which is float64's alone (``Reference.forward``),
    the next layer without a window makes others, real positions among them.
    """
    assert asked.exact is not None
    answers = asked.exact.forward(batch)
    if asked.own is None or all(np.isfinite(value).all() for value in answers.values()):
        return answers
    own = asked.own.forward(batch)
    return {name: np.where(np.isfinite(value), value, own[name]) for name, value in answers.items()}


def _beside_a_dead_row(asked: Asked, batch: Batch) -> dict[str, np.ndarray]:
    """The living rows alone; what a cross-attention makes of a wholly masked row, only the original knows."""
    assert asked.exact is not None
    answers = {name: value.copy() for name, value in asked.exact.forward(batch).items()}
    for row in np.flatnonzero(batch.mask.any(axis=1)).tolist():
        for output, value in asked.exact.forward(batch.trimmed(row)).items():
            span = asked.span(output, batch, row)
            answers[output][row, slice(None) if span is None else span] = value[0]
    return answers
