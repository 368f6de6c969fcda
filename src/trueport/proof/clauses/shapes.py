"""``shapes``: other batches and lengths than the traced ones, without padding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.inputs import Batch
from trueport.proof.result import Case

Answer = Callable[[Batch], dict[str, np.ndarray]]
AFFORDABLE = 1100
"""Tokens in one pass of the float64 original: the tables of BERT and GPT-2 end at 512 and 1024."""
CHUNKED = 133
"""Tokens past the chunks of 64 and 128 in which kernels work: a loop over them that was unrolled once serves no more."""
MOST = 64
"""Rows that are asked where a promise on sizes ends with as many."""
LONGEST = 8192
"""Tokens: past this a single attention matrix no longer fits where proofs run."""


def ask(asked: Asked) -> list[Case]:
    """Batch 1 to 5, lengths 1, 2, traced, traced + 4, long and past chunks, against the original or the rows alone."""
    traced, long = asked.lengths
    sizes = [(1, 1, 1), (1, 2, 3), (2, traced, 1), (5, 2, 4), (1, traced + 4, 2)]
    if not asked.inputs.sound:
        sizes += [(1, size, 2) for guard in asked.guards for size in (guard, guard + 5) if size <= LONGEST]
    if asked.role == "seq2seq":
        sizes += [(1, traced, asked.inputs.target_fits(guard)) for guard in asked.guards if guard <= LONGEST]
    sizes += [(guard, 2, 2) for guard in asked.guards if guard <= MOST]
    sizes += _far(asked) or [(2, long, long // 2), (1, CHUNKED, 2)]
    batches = {}
    for rows, length, target in dict.fromkeys((r, asked.inputs.fits(n), t) for r, n, t in sizes):
        name = f"batch {rows}, {asked.inputs.words(length)}" + (f", target {target}" if asked.role == "seq2seq" else "")
        batches[name] = asked.inputs.full(name, rows, length, target)
    cases = []
    for name, batch in (batches | _sounds_at_guards(asked)).items():
        try:
            got = asked.ask(batch)
            truth = rows_alone(asked, batch) if asked.exact is None else asked.exact.forward(batch)
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        cases.append(asked.compare(name, batch, got, truth))
    return cases + _late_positions(asked)


def _sounds_at_guards(asked: Asked) -> dict[str, Batch]:
    """Sounds of as many samples as the capture made no promise for; others come in pieces of many samples."""
    inputs = asked.inputs
    sizes = [max(size, inputs.sound) for guard in asked.guards for size in (guard, guard + 5)] if inputs.sound else []
    batches = {}
    for size in sizes:
        if inputs.pieces(size) <= LONGEST:
            whole = inputs.full(f"{size} samples", 1, inputs.pieces(size))
            batches[f"{size} samples"] = Batch(whole.ids[:, :size], whole.mask[:, :size])
    return batches


def _far(asked: Asked) -> list[tuple[int, int, int]]:
    """One row to the end of a position table, or past the largest relative distance, where that is affordable."""
    end = asked.inputs.limits.length or 0
    far = end or (asked.inputs.reach and asked.inputs.reach + 5)
    target = asked.inputs.limits.target or far
    # A planned program has an end of its own, which positions alone do not reach.
    planned = asked.inputs.limits.rows is not None
    if not far or far > AFFORDABLE or (asked.padded.has_input("position_ids") and not planned):
        return []
    return [(1, far, min(target, far) if asked.role == "seq2seq" else 1)]


def _late_positions(asked: Asked) -> list[Case]:
    """A short batch at the end of the positions: a table or a rotation that is wrong only there is wrong."""
    length = asked.inputs.fits(9)
    end = asked.inputs.limits.length or asked.inputs.reach
    if not asked.padded.has_input("position_ids") or asked.exact is None or end <= length:
        return []
    starts = sorted({end // 4, end // 2, end - length})
    name = f"positions from {', '.join(map(str, starts))}, {length} tokens each"
    batch = asked.inputs.full(name, len(starts), length)
    batch = replace(batch, start=tuple(starts[-batch.size :]))
    try:
        return [asked.compare(name, batch, asked.ask(batch), asked.exact.forward(batch))]
    except TrueportError as error:
        return [asked.refused(name, batch, error)]


def rows_alone(asked: Asked, batch: Batch, answer: Answer | None = None) -> dict[str, np.ndarray]:
    """Answers to each row by itself, put where the row stood; the artefact's own where no other is given."""
    answer = answer or asked.ask
    together: dict[str, np.ndarray] = {}
    for row in range(batch.size):
        if not batch.mask[row].any():
            continue
        alone = answer(batch.trimmed(row) if batch.ids.ndim == 2 else batch.take([row]))
        for name, value in alone.items():
            span = asked.span(name, batch, row)
            if span is not None and value.shape[1] != span.stop - span.start:
                span = None
            length = value.shape[1:2] if span is None else asked.real(name, batch).shape[1:]
            into = together.setdefault(name, np.zeros((batch.size, *length, *value.shape[2:])))
            into[row, slice(None) if span is None else span] = value[0]
    return together
