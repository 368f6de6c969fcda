"""``cache``: any split of a sequence into steps and chunks equals the whole; beams keep their cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.clauses.shapes import CHUNKED, LONGEST
from trueport.proof.inputs import Batch, left, right
from trueport.proof.reference import OriginalError
from trueport.proof.result import Case

BEYOND = 6
"""Tokens past a size from which on torch promised nothing."""


def ask(asked: Asked) -> list[Case]:
    """Chunkings of a ragged batch from an empty cache on, and reordered and repeated rows."""
    if asked.role == "encoder":
        raise NotApplicableError("an encoder has no cache")
    if not asked.cached:
        raise NotApplicableError("the graph takes no past")
    length = asked.inputs.target_fits(10)
    if length < 3:
        raise NotApplicableError(f"the model takes {length} tokens at most")
    batch = ragged(asked, "cache", length)
    cases = []
    for chunks in chunkings(length):
        cases.append(stepped(asked, f"chunks {words(chunks)}", batch, chunks))
    half = length // 2
    beams = {
        step: [row % batch.size for row in rows[: batch.size]] for step, rows in {1: [1, 1, 0], 2: [2, 0, 0]}.items()
    }
    cases.append(stepped(asked, "rows reordered and repeated", batch, [half, 1, length - half - 1], beams))
    if asked.padded.kept_states or any(pair.initial == "zeros" for pair in asked.padded.state):
        cases.append(_long(asked))
    return cases + [_behind(asked, guard) for guard in asked.guards if _affordable(asked, guard)]


def _affordable(asked: Asked, guard: int) -> bool:
    return guard + BEYOND <= min(LONGEST, asked.inputs.target_fits(LONGEST))


def _behind(asked: Asked, guard: int) -> Case:
    """Steps up to, at and past so many tokens, in all and in the cache, from where on torch promised nothing.

    Of one token, as ``generate`` takes them: the original's own may be unlike its whole.
    """
    length = guard + BEYOND
    batch = asked.inputs.full("cache", 1, 9 if asked.role == "seq2seq" else length, length)
    chunks = [guard - 1] + [1] * (BEYOND + 1)
    own = asked.exact is not None and asked.role == "decoder"
    return stepped(asked, f"a chunk of {guard - 1}, {BEYOND + 1} x 1", batch, chunks, own=own)


def _long(asked: Asked) -> Case:
    """A chunk as long as several of those in which kernels work, over a state: each carries it to the next."""
    batch = asked.inputs.full("cache", 1, CHUNKED)
    length = batch.mask.shape[1]
    first = min(5, length // 2)
    chunks = [first, length - first]
    return stepped(asked, f"chunks {words(chunks)}", batch, chunks)


def chunkings(length: int) -> list[list[int]]:
    """The whole, single steps, chunks, and a prefill with two steps."""
    third = max(length // 3, 1)
    candidates = [[length], [1] * length, [third, length - third], [length - 2, 1, 1], [1, length - 2, 1]]
    return [list(chunks) for chunks in dict.fromkeys(tuple(c) for c in candidates if min(c) > 0)]


def words(chunks: Sequence[int]) -> str:
    """Chunks for a reader: ``10 x 1`` or ``3+7``."""
    if len(chunks) > 3 and len(set(chunks)) == 1:
        return f"{len(chunks)} x {chunks[0]}"
    return "+".join(str(size) for size in chunks)


def ragged(asked: Asked, name: str, length: int) -> Batch:
    """Three rows, left-padded for a decoder, with padded sources for a seq2seq model."""
    if asked.role == "seq2seq":
        source = asked.inputs.fits(9)
        pads = [0, min(4, source - 1), min(2, source - 1)]
        return asked.inputs.draw(name, right(source, pads), target=length)
    pads = [0, 3 if length > 4 else 0, 1] if asked.masked else [0, 0, 0]
    return asked.inputs.draw(name, left(length, pads))


def stepped(
    asked: Asked,
    name: str,
    batch: Batch,
    chunks: Sequence[int],
    reorder: Mapping[int, Sequence[int]] | None = None,
    *,
    own: bool = False,
) -> Case:
    """Logits over the cache against the original over the whole, or against the artefact's own whole.

    With ``own``, a decoder's against the original's own steps, where it takes them.
    """
    final = batch
    for rows in (reorder or {}).values():
        final = final.take(rows)
    try:
        asked.afford(batch)
        got = asked.subject.decode(batch, chunks, reorder).astype(np.float64)
        truth = _steps(asked, batch, chunks) if own else None
        if truth is None:
            truth = asked.ask(final) if asked.exact is None else asked.exact.forward(final)
    except TrueportError as error:
        return asked.refused(name, batch, error)
    found = asked.compare(name, final, {"logits": got}, truth)
    return _own_steps(asked, found, batch, chunks, got) if found.failed and not (reorder or own) else found


def _steps(asked: Asked, batch: Batch, chunks: Sequence[int]) -> dict[str, np.ndarray] | None:
    """The original's own; None where it refuses them."""
    assert asked.exact is not None
    try:
        return {"logits": asked.exact.steps(batch, chunks)}
    except OriginalError:
        return None


def _own_steps(asked: Asked, found: Case, batch: Batch, chunks: Sequence[int], got: np.ndarray) -> Case:
    """The case against the original's own steps, where these are not its whole: a rotation that changes with the length."""
    if asked.exact is None or asked.role != "decoder" or len(chunks) == 1:
        return found
    whole, own = asked.exact.forward(batch), _steps(asked, batch, chunks)
    if own is None or not asked.compare(found.case, batch, own, whole).failed:
        return found
    against = asked.compare(found.case, batch, {"logits": got}, own)
    note = "; ".join(filter(None, ["the original's own steps are not its whole; against these steps", against.note]))
    return replace(against, note=note)
