"""From an artefact's sessions, and the original where there is one, to a proof."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.clauses import CLAUSES, check_names
from trueport.proof.clauses.ranges import HALF
from trueport.proof.inputs import Batch, Inputs, Limits, inputs_of, left, right
from trueport.proof.memory import ANY, Memory
from trueport.proof.positions import positions
from trueport.proof.quantised import Quantised
from trueport.proof.quantised import ask as ask_quantised
from trueport.proof.quantised import tolerance as quantised_tolerance
from trueport.proof.reference import OriginalError, Reference, wide_original
from trueport.proof.result import FAIL, NOT_APPLICABLE, PASS, Case, ClauseResult, Proof
from trueport.proof.stand_in import FolderReference
from trueport.proof.subject import Session, subject_of
from trueport.proof.tolerance import JITTERED, MEASURED, MOVED, PRECISE, ROUNDED, Tolerance, blind, measured, modelled
from trueport.roles.component import signature
from trueport.roles.windows import windows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trueport.interface import Interface
    from trueport.runtime.model import TrueportModel

SEED = 7
PROMPTS = 3
"""Prompts that ``generate`` is asked with."""
PROMPTS_KEPT = 40
"""The same for a program that keeps its cache: source after source, so that what a reset left behind would show."""
Cut = Callable[[Mapping[str, np.ndarray]], dict[str, np.ndarray]]
Progress = Callable[[str], None]
"""Called with each clause's name as it starts."""


def prove(
    sessions: Mapping[str, Session],
    *,
    role: str,
    config: Any,
    original: PreTrainedModel | None,
    dtype: str,
    depth: int,
    runnable: Any = None,
    guards: Sequence[int] = (),
    quantised: Quantised | None = None,
    clauses: Sequence[str] | None = None,
    seed: int = SEED,
    progress: Progress | None = None,
    wide: PreTrainedModel | None = None,
    plain: TrueportModel | None = None,
    memory: Memory = ANY,
) -> Proof:
    """Ask every clause.

    Args:
        sessions: the artefact's components by name, through their runtime.
        role: its role.
        config: the model's config.
        original: the unpatched model; None judges the artefact by itself.
        dtype: the artefact's float dtype.
        depth: operators in a row, for the tolerance without the original.
        runnable: the loaded artefact with ``generate``.
        guards: sizes from which on the capture made no promise.
        quantised: how the artefact is quantised; it is then judged by ``proof/quantised.py``.
        clauses: names of those to ask; None asks all.
        seed: of all inputs.
        progress: told each clause's name.
        wide: the original in float64, where that was made already.
        plain: the folder that the artefact was made of, which stands in for an original that cannot be had.
        memory: how the proof keeps to its memory.
    """
    asked = asked_of(sessions, role, config, original, wide, dtype, depth, runnable, seed, guards, memory)
    if original is None and plain is not None:
        reference = FolderReference(plain, role, list(asked.outputs))
        asked = replace(asked, own=reference, exact=reference)
    if quantised is not None:
        asked = replace(asked, quantised=quantised, tolerance=quantised_tolerance(quantised))
    component = "encoder, decoder" if role == "seq2seq" else "model"
    narrow = original is not None and original.dtype in HALF
    rare = {"quality": quantised is not None, "range": narrow}  # left out where they have nothing to ask, unless named
    results = []
    for name in check_names(clauses):
        if clauses is None and name in rare and not rare[name]:
            continue
        if progress is not None:
            progress(name)
        results.append(_judge(name, component, asked))
    return Proof(seed, tuple(results), _describe(original, plain), _tolerance_json(asked.tolerance))


def _judge(name: str, component: str, asked: Asked) -> ClauseResult:
    quantised = asked.quantised is not None
    return judged(name, component, lambda: ask_quantised(name, asked) if quantised else CLAUSES[name](asked))


def judged(name: str, component: str, ask: Callable[[], Sequence[Case]]) -> ClauseResult:
    """One clause's verdict from its cases."""
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            cases = tuple(ask())
    except NotApplicableError as reason:
        return ClauseResult(name, component, NOT_APPLICABLE, str(reason))
    left_out = tuple(f"{case.case}: {case.note}" for case in cases if case.left_out)
    cases = tuple(case for case in cases if not case.left_out)
    if left_out and not cases:
        return ClauseResult(name, component, NOT_APPLICABLE, f"left out, {left_out[0]}", (), left_out)
    failed = [case for case in cases if case.failed]
    if failed:
        worst = _in_words(max(failed, key=lambda case: case.ratio))
        return ClauseResult(name, component, FAIL, worst, cases, left_out)
    told = cases if name == "quality" else [case for case in cases if "original" in case.note]
    notes = list(dict.fromkeys([*(case.note for case in told), *(f"left out, {words}" for words in left_out)]))
    return ClauseResult(name, component, PASS, "; ".join(notes), cases, left_out)


def _in_words(case: Case) -> str:
    if case.error is None:
        return f"{case.case}: {case.note or 'not finite'}"
    note = f" ({case.note})" if case.note else ""
    return f"{case.case}: error {case.error:.3g} against a budget of {case.budget:.3g}{note}"


def asked_of(
    sessions: Mapping[str, Session],
    role: str,
    config: Any,
    original: PreTrainedModel | None,
    wide: PreTrainedModel | None,
    dtype: str,
    depth: int,
    runnable: Any = None,
    seed: int = SEED,
    guards: Sequence[int] = (),
    memory: Memory = ANY,
) -> Asked:
    """What the clauses are given: the artefact, the original, their inputs and tolerance; arguments as ``prove`` takes."""
    padded = sessions["encoder" if role == "seq2seq" else "model"].interface
    interfaces = [session.interface for session in sessions.values()]
    # What the encoder projects for its decoder alone, the original does not give out.
    handed = {pair.output for interface in interfaces for pair in interface.state}
    outputs = {t.name: t.shape for interface in interfaces for t in interface.plain_outputs if t.name not in handed}
    last = sessions["decoder" if role == "seq2seq" else "model"].interface
    side = "encoder_sequence_length" if role == "seq2seq" else "sequence_length"
    shortest = next((entry.minimum for entry in padded.dimensions if entry.name == side), 1)
    rows = _maximum(last, "batch_size")
    limits = Limits(_maximum(padded, side), _maximum(last, "sequence_length"), max(shortest, 1), rows)
    inputs = inputs_of(config, role, seed, padded, limits)
    own = exact = None
    if original is not None:
        own = Reference(original, role, list(outputs))
    widest = max([0, *windows(config)])
    lengths = (7 if widest == 0 else min(2 * widest + 3, 64), 33)
    masked = padded.has_input("attention_mask")
    if own is not None:
        whole = own
        made = {not memory.streamed: wide}
        exact = wide_original(
            lambda copied: whole.exact(made.get(copied), copied=copied),
            lambda reference: reference.forward(_typical(inputs, masked)),
            memory,
        )
    typical = _typical(inputs, masked)
    cut = partial(_real, outputs=outputs, padded=padded, batch=typical)
    tolerance, exact = _tolerance(typical, cut, own, exact, dtype, depth, memory)
    asked = Asked(
        subject_of(role, sessions), role, config, inputs, outputs, padded, tolerance, own, exact, runnable, lengths,
        maskable=_takes_mask(config, original), cached=bool(last.state or last.kept), guards=tuple(guards),
        prompts=PROMPTS_KEPT if role == "seq2seq" and last.kept else PROMPTS, memory=memory,
    )  # fmt: skip
    asked.afford(typical)  # what does not hold even this would leave out nearly all
    return asked


def model_class(config: Any) -> type[PreTrainedModel] | None:
    """The class that a config says it was saved from, where transformers has it."""
    from trueport.tasks import class_named

    names = getattr(config, "architectures", None) or [""]
    return class_named(names[0])


def _takes_mask(config: Any, original: PreTrainedModel | None) -> bool:
    """Whether the model itself takes a mask; taken for granted where its class is not known."""
    kind = original if original is not None else model_class(config)
    return kind is None or "attention_mask" in signature(kind)


def _maximum(interface: Any, name: str) -> int | None:
    return next((dimension.maximum for dimension in interface.dimensions if dimension.name == name), None)


def _tolerance(
    batch: Batch, cut: Cut, own: Reference | None, exact: Reference | None, dtype: str, depth: int, memory: Memory
) -> tuple[Tolerance, Reference | None]:
    """The noise floor on a batch like those that the clauses ask, and the original that tells the truth.

    ``cut`` takes an answer's real positions.
    """
    if own is None or exact is None:
        return modelled(dtype, depth), exact
    rough, fine = cut(own.forward(batch)), _wide(exact, batch, cut)
    floors, words = _floors(rough, [fine] if fine else []), PRECISE
    if fine is None or blind(floors):
        memory.copy(MOVED, own.model)
        exact, words = own, JITTERED if fine is None else ROUNDED
        # One after the other: each is a copy of the weights.
        floors = _floors(rough, (cut(own.jittered(seed).forward(batch)) for seed in range(3)))
    return measured(floors, dtype, depth, words), exact


def _wide(exact: Reference, batch: Batch, cut: Cut) -> dict[str, np.ndarray] | None:
    """The answer in float64 at real positions; None where it is not finite or there is none.

    CANINE multiplies a float32 mask by float64's lowest number: infinity times zero. XGLM puts it into a float32.
    """
    try:
        fine = cut(exact.forward(batch))
    except OriginalError:
        return None
    return fine if all(np.isfinite(value).all() for value in fine.values()) else None


def _real(
    answer: Mapping[str, np.ndarray], outputs: Mapping[str, tuple[int | str, ...]], padded: Interface, batch: Batch
) -> dict[str, np.ndarray]:
    """An answer at real positions; all of an output that has none of its own."""
    found = {name: positions(outputs[name], padded, batch) for name in answer}
    return {
        name: value if (real := found[name]) is None or value.shape[:2] != real.shape else value[real]
        for name, value in answer.items()
    }


def _floors(rough: Mapping[str, np.ndarray], others: Iterable[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """The largest difference of each output between the original and other selves, relative to their magnitude."""
    floors: dict[str, float] = {}
    for other in others:
        for output, value in other.items():
            scale = float(np.abs(value).max()) or 1.0
            error = float(np.abs(rough[output] - value).max())
            floors[output] = max(floors.get(output, 0.0), error / scale)
    return floors


def _typical(inputs: Inputs, masked: bool) -> Batch:
    """A batch like those that the clauses ask."""
    length = inputs.fits(MEASURED)
    pad = right if inputs.sound else left
    return inputs.draw("floor", pad(length, [0, min(5, length - 1) if masked else 0]), target=12)


def _tolerance_json(tolerance: Tolerance) -> dict[str, Any]:
    return {"multiple": tolerance.multiple, "noise_floor": tolerance.floor(), "words": tolerance.words}


def _describe(original: PreTrainedModel | None, plain: TrueportModel | None) -> dict[str, Any] | None:
    if original is None and plain is not None:
        return {"class": "the folder before its optimisation", "dtype": str(plain.dtype).removeprefix("torch.")}
    if original is None:
        return None
    return {
        "class": type(original).__name__,
        "dtype": str(original.dtype).removeprefix("torch."),
        "attention": str(getattr(original.config, "_attn_implementation", None)),
    }
