"""``shapes``: other batches and lengths than the traced ones, without padding."""

from __future__ import annotations

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked
from trueport.proof.inputs import Batch
from trueport.proof.result import Case

LONGEST = 8192
"""Tokens: past this a single attention matrix no longer fits where proofs run."""


def ask(asked: Asked) -> list[Case]:
    """Batch 1 to 5, lengths 1, 2, traced, traced + 4 and long, against the original or the rows alone."""
    traced, long = asked.lengths
    sizes = [(1, 1, 1), (1, 2, 3), (2, traced, 1), (5, 2, 4), (3, traced + 4, 2), (1, long, 7), (2, long, long // 2)]
    sizes += [(1, guard + 5, 2) for guard in asked.guards if guard + 5 <= LONGEST]
    cases = []
    for rows, length, target in dict.fromkeys((r, asked.inputs.fits(n), t) for r, n, t in sizes):
        name = f"batch {rows}, length {length}" + (f", target {target}" if asked.role == "seq2seq" else "")
        batch = asked.inputs.full(name, rows, length, target)
        try:
            got = asked.ask(batch)
            truth = rows_alone(asked, batch) if asked.exact is None else asked.exact.forward(batch)
        except TrueportError as error:
            cases.append(asked.refused(name, batch, error))
            continue
        cases.append(asked.compare(name, batch, got, truth))
    return cases


def rows_alone(asked: Asked, batch: Batch) -> dict[str, np.ndarray]:
    """The artefact's own answers to each row by itself, put where the row stood."""
    together: dict[str, np.ndarray] = {}
    for row in range(batch.size):
        if not batch.mask[row].any():
            continue
        alone = asked.ask(batch.trimmed(row) if batch.ids.ndim == 2 else batch.take([row]))
        for name, value in alone.items():
            padded = (
                value.shape[1:2] == (batch.span(row).stop - batch.span(row).start,)
                and asked.real(name, batch).ndim == 2
            )
            padded = padded and not (asked.role == "seq2seq" and name == "logits") and batch.ids.ndim == 2
            length = (batch.mask.shape[1],) if padded else value.shape[1:2]
            into = together.setdefault(name, np.zeros((batch.size, *length, *value.shape[2:])))
            into[row, batch.span(row) if padded else slice(None)] = value[0]
    return together
