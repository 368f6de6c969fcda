"""``generate``: greedy, beam and seeded sampling equal the original's, token for token."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from trueport.errors import TrueportError
from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.inputs import Batch, left, right
from trueport.proof.result import Case

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
    return cases


def _way(asked: Asked, name: str, options: dict[str, Any]) -> Case:
    """All prompts under one way to choose tokens; as many at once as the artefact takes."""
    beams = options["num_beams"]
    prompts = asked.prompts if beams == 1 else min(asked.prompts, BEAMED)
    rows = asked.inputs.limits.rows
    at_once = prompts if rows is None else min(prompts, max(rows // beams, 1))
    if rows is not None and beams > rows:
        options = options | {"num_beams": rows}
    cases = []
    for start in range(0, prompts, at_once):
        batch = _prompts(asked, f"prompts {start}" if start else "prompts", min(at_once, prompts - start))
        cases.append(_one(asked, batch, options))
    worst = max(cases, key=lambda case: case.ratio)
    notes = "; ".join(dict.fromkeys(case.note for case in cases if case.note))
    wrong = None if worst.error is None else sum(case.error or 0.0 for case in cases)
    told = replace(worst, case=f"{name}, {prompts} prompts", error=wrong, note=notes)
    if asked.quantised is None or wrong is None:
        return told
    tokens = sum(case.budget for case in cases)
    share = 1 - wrong / tokens if tokens else 1.0
    note = f"{share:.3f} of {tokens:.0f} tokens are the original's; a figure, judged by quality alone"
    return replace(told, budget=tokens, note=note)


def _prompts(asked: Asked, name: str, count: int) -> Batch:
    if asked.role == "seq2seq":
        length = asked.inputs.fits(9)
        pads = [0, min(4, length - 1), min(2, length - 1)]
        return asked.inputs.draw(name, right(length, [pads[i % 3] for i in range(count)]))
    pads = [0, 4, 6] if asked.masked else [0, 0, 0]
    return asked.inputs.draw(name, left(7, [pads[i % 3] for i in range(count)]))


def _one(asked: Asked, batch: Batch, options: dict[str, Any]) -> Case:
    assert asked.own is not None and asked.exact is not None
    name = "prompts"
    theirs, ours = _Scores(options["num_beams"]), _Scores(options["num_beams"])
    wanted = generate(asked.own.model, batch, options, theirs)
    try:
        got = generate(asked.runnable, batch, options, ours)
    except (TrueportError, RuntimeError, ValueError, IndexError) as error:  # torch will not sample from NaN
        return asked.refused(name, batch, error)
    if asked.quantised is not None:
        return _agreement(asked, batch, got, wanted)
    differing = differing_rows(got, wanted)
    if not differing:
        return Case(name, 0.0, 0.0)
    tied = _ties(asked, batch, options, wanted, differing, theirs.apart(ours))
    wrong = [row for row in differing if row not in tied]
    note = f"tie in {len(tied)} prompts: rounding alone changes the original's own tokens there" if tied else ""
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


def _ties(
    asked: Asked, batch: Batch, options: dict[str, Any], wanted: np.ndarray, differing: list[int], apart: float
) -> set[int]:
    """Those of ``differing`` whose tokens change in the original itself, in float64 or when its scores move a little.

    A little is how far the artefact's scores lie from the original's after the same tokens (``apart``): at least one
    noise floor, and never more than the budget of the logits, which the other clauses hold the artefact to.
    """
    assert asked.own is not None and asked.exact is not None
    open_ = set(differing) - set(differing_rows(wanted, generate(asked.exact.model, batch, options)))
    scale = float(np.abs(asked.own.forward(batch)["logits"]).max())
    budget = asked.tolerance.budget("logits", scale)
    size = max(budget / asked.tolerance.multiple, min(apart, budget))
    for seed in range(NUDGES):
        if not open_:
            break
        open_ -= set(differing_rows(wanted, generate(asked.own.model, batch, options, _Nudge(size, seed))))
    return set(differing) - open_


class _Scores(LogitsProcessor):
    """Remembers what each step scored, by prompt and by the tokens before it."""

    def __init__(self, beams: int) -> None:
        self.beams = beams
        self.seen: dict[tuple[int, ...], torch.Tensor] = {}

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        for row, (tokens, told) in enumerate(zip(input_ids.tolist(), scores, strict=True)):
            self.seen[(row // self.beams, *tokens)] = told.float()
        return scores

    def apart(self, other: _Scores) -> float:
        """The largest difference of a finite score after the same tokens; 0 where no tokens are the same."""
        largest = 0.0
        for tokens in self.seen.keys() & other.seen.keys():
            moved = (self.seen[tokens] - other.seen[tokens]).abs()
            largest = max(largest, float(moved[moved.isfinite()].amax(0)) if moved.isfinite().any() else 0.0)
        return largest


class _Nudge(LogitsProcessor):
    """Moves every score up or down by ``size``, with random signs of its own."""

    def __init__(self, size: float, seed: int) -> None:
        self.size = size
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        signs = torch.randint(0, 2, scores.shape, generator=self.generator) * 2 - 1
        return scores + (signs * self.size).to(scores.dtype)


def differing_rows(got: np.ndarray, wanted: np.ndarray) -> list[int]:
    """Rows whose tokens differ; a shorter array counts as padded by -1."""
    width = max(got.shape[1], wanted.shape[1])
    first, second = (np.pad(a, ((0, 0), (0, width - a.shape[1])), constant_values=-1) for a in (got, wanted))
    return [int(row) for row in np.flatnonzero((first != second).any(axis=1))]


def generate(model: Any, batch: Batch, options: dict[str, Any], processor: LogitsProcessor | None = None) -> np.ndarray:
    """Tokens, (prompts, length), from transformers' GenerationMixin under a fixed seed."""
    from transformers import GenerationMixin

    feeds: dict[str, Any] = {}
    if batch.ids.ndim == 3:
        feeds[model.main_input_name] = torch.from_numpy(batch.ids).to(model.dtype)
    else:
        feeds = {"input_ids": torch.from_numpy(batch.ids), "attention_mask": torch.from_numpy(batch.mask)}
    torch.manual_seed(0)
    with torch.no_grad():
        # Not model.generate: Whisper's own adds timestamps around the same loop.
        processors = LogitsProcessorList([processor] if processor else [])
        tokens: Any = GenerationMixin.generate(model, **feeds, **options, logits_processor=processors)
    return np.asarray(tokens.numpy())
