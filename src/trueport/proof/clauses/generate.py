"""``generate``: greedy, beam and seeded sampling equal the original's, token for token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from trueport.cache_names import cache_name, field_name
from trueport.errors import TrueportError
from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.clauses.shapes import LONGEST
from trueport.proof.inputs import Batch, left, right
from trueport.proof.memory import TooLargeError
from trueport.proof.result import Case
from trueport.roles.windows import rope_limits

NEW_TOKENS = 6
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"num_beams": 1, "do_sample": False},
    "beam 3": {"num_beams": 3, "do_sample": False},
    "sampling": {"num_beams": 1, "do_sample": True, "top_k": 20, "temperature": 1.0, "top_p": 1.0},
}
"""Options of ``generate`` by the case's name."""
BEAMED = 6
"""Prompts under beam search at the most, of which each takes several rows."""
NUDGES = 32
"""How often the original is asked at the most whether rounding alone changes its tokens."""


def ask(asked: Asked) -> list[Case]:
    """Ragged padded prompts through both ``generate`` methods."""
    if asked.role == "encoder":
        raise NotApplicableError("an encoder generates nothing")
    asked.require_original()
    if asked.runnable is None:
        raise NotApplicableError("the folder was written by another tool, whose files have no generate()")
    new = asked.inputs.target_fits(NEW_TOKENS + 7) - 7
    if new < 1:
        raise NotApplicableError("the model takes too few tokens to generate")
    cases = []
    for name, options in WAYS.items():
        options = {"max_new_tokens": new, "min_new_tokens": min(3, new), "use_cache": True} | options
        cases.append(_way(asked, name, options))
    return cases + [_past(asked, limit, new) for limit in rope_limits(asked.config) if _reaches(asked, limit + new)]


def _reaches(asked: Asked, length: int) -> bool:
    return asked.role == "decoder" and asked.inputs.fits(length) == length <= LONGEST


def _past(asked: Asked, limit: int, new: int) -> Case:
    """Greedy across a length at which the rotations change: some models then read all tokens anew, without their cache."""
    name = f"greedy across {limit} tokens"
    length = max(limit + 1 - new // 2, 1)
    pads = [0, min(3, length - 1)] if asked.masked else [0, 0]
    batch = asked.inputs.draw(name, left(length, pads[: asked.inputs.limits.rows]))
    try:
        asked.afford(batch)
    except TooLargeError as error:
        return asked.refused(name, batch, error)
    options = {"max_new_tokens": new, "min_new_tokens": new, "use_cache": True} | WAYS["greedy"]
    return replace(_one(asked, batch, options), case=name)


def _way(asked: Asked, name: str, options: dict[str, Any]) -> Case:
    """All prompts under one way to choose tokens; as many at once as the artefact takes."""
    beams = options["num_beams"]
    many = asked.prompts if beams == 1 else min(asked.prompts, BEAMED)
    rows = asked.inputs.limits.rows
    at_once = many if rows is None else min(many, max(rows // beams, 1))
    if rows is not None and beams > rows:
        options = options | {"num_beams": rows}
    cases = []
    for start in range(0, many, at_once):
        batch = prompts(asked, f"prompts {start}" if start else "prompts", min(at_once, many - start))
        cases.append(_one(asked, batch, options))
    worst = max(cases, key=lambda case: case.ratio)
    notes = "; ".join(dict.fromkeys(case.note for case in cases if case.note))
    wrong = None if worst.error is None else sum(case.error or 0.0 for case in cases)
    told = replace(worst, case=f"{name}, {many} prompts", error=wrong, note=notes)
    if asked.quantised is None or wrong is None:
        return told
    tokens = sum(case.budget for case in cases)
    share = 1 - wrong / tokens if tokens else 1.0
    note = f"{share:.3f} of {tokens:.0f} tokens are the original's; a figure, judged by quality alone"
    return replace(told, budget=tokens, note=note)


def prompts(asked: Asked, name: str, count: int) -> Batch:
    """``count`` ragged prompts, padded left for a decoder and right for an encoder."""
    if asked.role == "seq2seq":
        length = asked.inputs.fits(9)
        pads = [0, min(4, length - 1), min(2, length - 1)]
        return asked.inputs.draw(name, right(length, [pads[i % 3] for i in range(count)]))
    pads = [0, 4, 6] if asked.masked else [0, 0, 0]
    return asked.inputs.draw(name, left(7, [pads[i % 3] for i in range(count)]))


def _one(asked: Asked, batch: Batch, options: dict[str, Any]) -> Case:
    assert asked.own is not None and asked.exact is not None
    name = "prompts"
    try:
        wanted = generate(asked.own.model, batch, options)
    except RuntimeError as error:
        if all(np.isfinite(value).all() for value in asked.own.forward(batch).values()):
            reason = " ".join(str(error).split())[:200]
            return Case(name, 0.0, 0.0, None, f"the original itself does not generate so: {reason}", left_out=True)
        raise NotApplicableError("the original's own logits are not finite: see range") from None
    try:
        got = generate(asked.runnable, batch, options)
    except (TrueportError, RuntimeError, ValueError, IndexError) as error:  # torch will not sample from NaN
        return asked.refused(name, batch, error)
    if asked.quantised is not None:
        return _agreement(asked, batch, got, wanted)
    differing = differing_rows(got, wanted)
    if not differing:
        return Case(name, 0.0, 0.0)
    tied = _ties(asked, batch, options, wanted, differing)
    wrong = [row for row in differing if row not in tied]
    whole = _without_cache(asked, batch, options, got, wrong)
    wrong = [row for row in wrong if row not in whole]
    notes = [f"tie in {len(tied)} prompts: rounding alone changes the original's own tokens there"] if tied else []
    if whole:
        notes.append(f"in {len(whole)} prompts the original's own cache changes its tokens: these are its own without")
    note = "; ".join(notes)
    row = (wrong or differing)[0]
    worst = batch.take([row]).to_json() | {"got": got[row].tolist(), "wanted": wanted[row].tolist()}
    return Case(name, float(len(wrong)), 0.0, worst, note)


def _agreement(asked: Asked, batch: Batch, got: np.ndarray, wanted: np.ndarray) -> Case:
    """A quantised artefact: how many generated tokens differ, of how many; what both fill up is not counted."""
    start = 1 if asked.role == "seq2seq" else batch.ids.shape[1]
    width = max(got.shape[1], wanted.shape[1])
    pad = asked.inputs.pad
    first, second = (
        np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=pad)[:, start:] for a in (got, wanted)
    )
    counted = (first != pad) | (second != pad)
    differ = (first != second) & counted
    row = int(differ.sum(axis=1).argmax())
    worst = batch.take([row]).to_json() | {"got": got[row].tolist(), "wanted": wanted[row].tolist()}
    return Case("prompts", float(differ.sum()), float(counted.sum()), worst if differ.any() else None)


def _ties(asked: Asked, batch: Batch, options: dict[str, Any], wanted: np.ndarray, differing: list[int]) -> set[int]:
    """Those of ``differing`` whose tokens change in the original itself, in float64 or when its scores move a little.

    A little is how far the artefact's logits lie from the original's over the original's own tokens, all at once: so a
    fault of the steps (a beam that keeps another's cache) does not make it larger. It is at least one noise floor,
    and never more than the budget that the other clauses hold the artefact to.
    """
    assert asked.own is not None and asked.exact is not None
    left_over = set(differing) - (_others(wanted, asked.exact.model, batch, options) or set())
    forced = _forced(asked, batch, wanted)
    told = asked.own.forward(forced)["logits"]
    budget = asked.tolerance.budget("logits", float(np.abs(told).max()))
    apart = float(np.abs(asked.subject.forward(forced)["logits"] - told).max())
    size = max(budget / asked.tolerance.multiple, min(apart, budget))
    for seed in range(NUDGES):
        if not left_over:
            break
        left_over -= _others(wanted, asked.own.model, batch, options, _Nudge(size, seed)) or set()
    return set(differing) - left_over


def _without_cache(asked: Asked, batch: Batch, options: dict[str, Any], got: np.ndarray, rows: list[int]) -> set[int]:
    """Those of ``rows`` whose tokens are the original's own where it generates without its cache.

    Where that is not what it generates with one, it is the original that contradicts itself: transformers' cache for a
    sliding window of one token keeps them all, and no mask hides them.
    """
    assert asked.own is not None
    others = _others(got, asked.own.model, batch, options | {"use_cache": False}) if rows else None
    return set() if others is None else set(rows) - others


def _forced(asked: Asked, batch: Batch, wanted: np.ndarray) -> Batch:
    """``batch`` with the tokens that the original chose."""
    if asked.role == "seq2seq":
        return replace(batch, target=wanted)
    new = np.ones((batch.size, wanted.shape[1] - batch.ids.shape[1]), batch.mask.dtype)
    return replace(batch, ids=wanted, mask=np.concatenate([batch.mask, new], axis=1))


class _Nudge(LogitsProcessor):
    """Moves every score up or down by ``size``, with random signs of its own."""

    def __init__(self, size: float, seed: int) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, scores.shape, generator=self.generator) * 2 - 1
        return scores + (signs * self.size).to(scores.dtype)


def _others(
    tokens: np.ndarray, model: Any, batch: Batch, options: dict[str, Any], processor: LogitsProcessor | None = None
) -> set[int] | None:
    """Rows in which a model generates others than these tokens; None where it does not generate.

    In float64 a row that sees no key is NaN, which torch does not sample from.
    """
    try:
        return set(differing_rows(tokens, generate(model, batch, options, processor)))
    except RuntimeError:
        return None


def differing_rows(got: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Rows whose tokens differ; a shorter array counts as padded by -1."""
    width = max(got.shape[1], wanted.shape[1])
    first, second = (np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=-1) for a in (got, wanted))
    return [int(row) for row in np.flatnonzero((first != second).any(axis=1))]


def generate(model: Any, batch: Batch, options: dict[str, Any], processor: LogitsProcessor | None = None) -> np.ndarray:
    """Tokens, (prompts, length), from transformers' GenerationMixin under a fixed seed.

    A model whose code calls its cache otherwise than GenerationMixin does would not be given it: it does without.
    """
    from transformers import GenerationMixin
    from transformers.modeling_outputs import CausalLMOutputWithPast

    if cache_name(model) != field_name(CausalLMOutputWithPast):
        options = options | {"use_cache": False}
    feeds: dict[str, Any] = {}
    if batch.ids.ndim > 2:
        feeds[model.main_input_name] = torch.from_numpy(batch.ids).to(model.dtype)
    else:
        feeds = {"input_ids": torch.from_numpy(batch.ids), "attention_mask": torch.from_numpy(batch.mask)}
    torch.manual_seed(0)
    with torch.no_grad():
        # Not model.generate: Whisper's own adds timestamps around the same loop.
        processors = LogitsProcessorList([processor] if processor else [])
        tokens: Any = GenerationMixin.generate(model, **feeds, **options, logits_processor=processors)
    return np.asarray(tokens.numpy())
