"""``quality``: a quantised artefact's distributions against the float original's, at real positions of padded batches.

The batches are of given prompts, where there are any, or of drawn tokens, on which a model is often undecided.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import numpy as np

from trueport.errors import TrueportError
from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.clauses.generate import prompts
from trueport.proof.clauses.shapes import AFFORDABLE
from trueport.proof.continued import continued
from trueport.proof.inputs import Batch, holes, left, right
from trueport.proof.memory import TooLargeError
from trueport.proof.result import Case
from trueport.roles.windows import rope_limits, windows
from trueport.targets.quantized import Gate

POSITIONS = 256
"""Real positions of each output that are compared at the least: one that disagrees is 0.4 %."""
MORE = 8
"""How many times as many are compared, of given prompts that hold so many."""
READ = 256
"""Tokens of a given prompt that are compared at the most, where the model has no window past them."""
ROOM = 5
"""How many times the gate's divergence drawn tokens may have beside given prompts: on them the original is often undecided,
but what prompts do not reach, a token's embedding or a position past them, must be the original's too. Four bits of an
example that is 64 wide take 2.7 times; other embeddings, or another rope's factors, took 6 times int8's and more."""
BEGUN = 24
"""Tokens of a given prompt that are continued at the most: each new token costs a pass over all."""
MOST = 200
"""Batches at the most, for outputs that have one position for each row under ``--max-batch 1``."""
GENERATED = 128
"""Tokens of the original's own greedy continuations that are compared at the least."""
CONTINUED = 12
"""New tokens of each prompt at the most."""
EACH = ("regression", "multi_label_classification")
"""Values of ``problem_type`` with which a classifier's entries each say something by themselves."""
PROMPTED = 32
"""Batches of prompts at the most, for models that end at once."""


@dataclass
class _Compared:
    """One output so far: each position's agreement and divergence, or its distance; and the worst row met."""

    agree: list[bool] = field(default_factory=list)
    values: list[float] = field(default_factory=list)
    worst: tuple[float, Batch | None] = (-1.0, None)
    given: int = 0  # of the values, those of given prompts
    rows: list[int] = field(default_factory=list)  # how many of the values each row has


def ask(asked: Asked, times: int = 1) -> list[Case]:
    """Top-1 agreement and mean divergence of every output that is a distribution; else the distance of every output.

    Of a model that generates, also the agreement along its own continuations of prompts. ``times`` as many drawn positions
    and tokens as a proof's are compared.
    """
    if asked.quantised is None:
        raise NotApplicableError("nothing in it is quantised")
    asked.require_original()
    generated = _generated(asked, times) if asked.role in ("decoder", "seq2seq") else []
    return distributions(asked, POSITIONS * times, POSITIONS * MORE) + generated + _elsewhere(asked, times)


def _elsewhere(asked: Asked, times: int) -> list[Case]:
    """Beside given prompts: that drawn tokens, holes and lengths past the windows are no worse than rounding makes them."""
    assert asked.quantised is not None
    if not asked.quantised.prompts:
        return []
    gate = asked.quantised.gate
    because = f"{ROOM} times the gate's, as the original is often undecided on them"
    wider = Gate(0.0, gate.divergence * ROOM, gate.distance * ROOM**0.5, 0.0, because)
    drawn = replace(asked, quantised=replace(asked.quantised, gate=wider, prompts=()))
    cases = distributions(drawn, POSITIONS * times, 0)
    return [replace(case, case=f"drawn tokens: {case.case}") for case in cases if "disagreement" not in case.case]


def distributions(asked: Asked, positions: int, told: int) -> list[Case]:
    """The part of ``ask`` that takes tokens as they are, at so many positions or a few more, ``told`` of given prompts."""
    assert asked.own is not None and asked.quantised is not None
    names = [name for name in asked.outputs if _is_distribution(asked, name)]
    compared = {name: _Compared() for name in names or asked.outputs}
    too_large = []
    for batch, kept in _batches(asked, compared, positions, told):
        try:
            got, wanted = asked.ask(batch), asked.own.forward(batch)
        except TooLargeError as error:  # for the memory of the proof; others may not be
            too_large.append(asked.refused("padded batches", batch, error))
            continue
        except TrueportError as error:
            return [asked.refused("padded batches", batch, error)]
        for name, found in compared.items():
            real = asked.real(name, batch)
            # What comes behind an answer's end is none.
            if kept is not None and batch.target is not None and kept.shape == wanted[name].shape[:2]:
                real = np.broadcast_to(real, kept.shape) & kept
            _add(found, batch, got[name], wanted[name], real, is_distribution=bool(names))
            found.given = len(found.values) if kept is not None else found.given
    if too_large and not all(found.values for found in compared.values()):
        return too_large[:1]
    cases = [case for name, found in compared.items() for case in _cases(asked, name, found, asked.quantised.gate)]
    return cases + too_large[:1]


def _is_distribution(asked: Asked, name: str) -> bool:
    """Whether an output is a choice among its entries: adding a number to all of them changes nothing then, only then."""
    shape = asked.outputs[name]
    each = len(shape) == 2 and getattr(asked.config, "problem_type", None) in EACH
    return "logits" in name and shape[-1] != 1 and not each


def _batches(
    asked: Asked, compared: Mapping[str, _Compared], positions: int, told: int
) -> Iterator[tuple[Batch, np.ndarray | None]]:
    """Given prompts until ``told`` positions were compared, drawn ones until ``positions`` were.

    Of given ones also which of the decoder's positions count, (batch, length); None beside drawn ones.
    """

    def fewer(than: int) -> bool:
        return any(len(found.values) < than for found in compared.values())

    for batch, kept in _given(asked):
        if not fewer(told):
            break
        yield batch, kept
    for batch in _drawn(asked):
        if not fewer(positions):
            return
        yield batch, None


def _given(asked: Asked) -> Iterator[tuple[Batch, np.ndarray]]:
    """Given prompts, a few at a time where they can be padded, on either side in turn; sources with the answers to them."""
    assert asked.quantised is not None
    prompts, limits = asked.quantised.prompts, asked.inputs.limits
    rows = min(limits.rows or 8, 8 if asked.role == "seq2seq" else 2) if asked.masked else 1
    most = max(READ, longest(asked))
    for index, start in enumerate(range(0, len(prompts), rows)):
        pad = left if index % 2 else right
        batch = asked.inputs.told(f"quality given {index}", prompts[start : start + rows], pad, most)
        new = asked.inputs.target_fits(1 + CONTINUED) - 1
        counted = np.ones((batch.size, 0), dtype=bool)
        if batch.target is not None and new > 0 and asked.own is not None:
            batch, counted = continued(asked.own.forward, asked.config, batch, new)
        first = np.ones((batch.size, batch.decoded.shape[1] - counted.shape[1]), dtype=bool)
        yield batch, np.concatenate([first, counted], axis=1)


def _drawn(asked: Asked) -> Iterator[Batch]:
    """Ragged padded batches, short and past the model's windows, new tokens in each."""
    short, long = asked.inputs.fits(12), longest(asked)
    for index in count():
        if index == MOST:
            return
        length = long if index % 4 == 3 else short
        rows = 3 if asked.inputs.limits.rows is None else min(asked.inputs.limits.rows, 8)
        name = f"quality {index}"
        yield asked.inputs.draw(name, _mask(asked, index, length, rows), target=min(length, 12))


def longest(asked: Asked) -> int:
    """Past every window, chunk and rope limit that is affordable; at least 20 tokens where the model takes them."""
    limits = {*windows(asked.config), *rope_limits(asked.config)}
    return asked.inputs.fits(max([20, *(limit + 5 for limit in limits if limit + 5 <= AFFORDABLE)]))


def _mask(asked: Asked, index: int, length: int, rows: int) -> np.ndarray:
    """Padding at the left, at the right, and in holes where the graph is told its positions; (rows, length)."""
    if not asked.masked:
        return np.ones((rows, length), dtype=np.int64)
    pads = [(row * length) // (2 * rows) for row in range(rows)]
    told = asked.role != "decoder" or asked.padded.has_input("position_ids")
    ways = [lambda: right(length, pads), lambda: left(length, pads)]
    if told:
        ways.append(lambda: holes(length, rows, asked.inputs.rng(f"quality holes {index}")))
    return ways[index % len(ways)]()


def _add(
    found: _Compared, batch: Batch, got: np.ndarray, wanted: np.ndarray, real: np.ndarray, *, is_distribution: bool
) -> None:
    """Compare one batch: arrays (batch, [length,] entries), or (batch, length) scores over positions."""
    real = np.broadcast_to(real, wanted.shape[: real.ndim])
    for row in range(batch.size):
        keep = real[row]
        if not np.any(keep):
            continue
        if wanted.ndim == 2 and real.ndim == 2:  # an answer's start among the real positions of its row
            first, second = got[row][keep][None], wanted[row][keep][None]
        else:
            first, second = (array[row][keep].reshape(-1, array.shape[-1]) for array in (got, wanted))
        if is_distribution:
            found.agree += (first.argmax(-1) == second.argmax(-1)).tolist()
            values = divergence(second, first)
        else:
            values = np.linalg.norm(first - second, axis=-1) / np.maximum(np.linalg.norm(second, axis=-1), 1e-30)
        found.values += values.tolist()
        found.rows.append(len(values))
        if float(values.max()) > found.worst[0]:
            found.worst = (float(values.max()), batch.take([row]))


def _generated(asked: Asked, times: int) -> list[Case]:
    """Choices along the original's greedy continuations of prompts, each given the original's tokens before it.

    Left to itself, an artefact that chooses otherwise once goes on elsewhere, and all later tokens count against it:
    that share is a figure of ``generate``. Given the same tokens, every choice is judged for itself.
    """
    assert asked.own is not None and asked.quantised is not None
    wrong = total = 0
    choices, rows = list[np.ndarray](), list[int]()
    worst: tuple[int, Batch | None] = (0, None)
    for batch, is_given in _beginnings(asked):
        if total >= GENERATED * max(times, MORE // 2 if is_given else 1):
            break
        begun = 1 if asked.role == "seq2seq" else batch.ids.shape[1]
        new = asked.inputs.target_fits(begun + CONTINUED) - begun
        if new < 1:
            return []
        told, counted = continued(asked.own.forward, asked.config, batch, new)
        try:
            got = asked.ask(told)["logits"]
        except TrueportError as error:
            return [asked.refused("prompts", told, error)]
        differ = got.argmax(-1) != asked.own.forward(told)["logits"].argmax(-1)
        differ = differ[:, -counted.shape[1] - 1 : -1] & counted
        wrong, total = wrong + int(differ.sum()), total + int(counted.sum())
        choices, rows = [*choices, differ[counted]], [*rows, *counted.sum(axis=1).tolist()]
        row = int(differ.sum(axis=1).argmax())
        if differ[row].sum() > worst[0]:
            worst = (int(differ[row].sum()), told.take([row]))
    gate = asked.quantised.gate
    share = wrong / total
    note = (
        f"{1 - share:.4f} of {total} choices along the original's greedy continuations are the original's; the gate "
        f"asks for {gate.generated:g} or more: {gate.because}"
    )
    shown = None if worst[1] is None else worst[1].to_json()
    spread = spread_of(np.concatenate(choices), rows, GENERATED)
    return [Case("generated-token disagreement", share, round(1 - gate.generated, 6), shown, note, spread=spread)]


def _beginnings(asked: Asked) -> Iterator[tuple[Batch, bool]]:
    """What is continued: of each given prompt its first half, a source whole; then drawn ones. And which of the two."""
    assert asked.quantised is not None
    limits, whole = asked.inputs.limits, asked.role == "seq2seq"
    rows = min(limits.rows or 8, 8) if asked.masked else 1
    most = READ if whole else max(min(BEGUN, asked.inputs.fits(BEGUN + CONTINUED) - CONTINUED), 1)
    given = [prompt if whole else prompt[: max(len(prompt) // 2, 1)] for prompt in asked.quantised.prompts]
    for start in range(0, len(given), rows):
        batch = asked.inputs.told(f"quality begun {start}", given[start : start + rows], right if whole else left, most)
        yield batch, True
    for index in range(PROMPTED):
        yield prompts(asked, f"quality prompts {index}", min(limits.rows or 8, 8)), False


def divergence(wanted: np.ndarray, got: np.ndarray) -> np.ndarray:
    """KL(P || Q) = sum p (log p - log q) in nats (Kullback and Leibler, 1951) of logits (..., entries); (...)."""
    log_p, log_q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (wanted, got))
    p = np.exp(log_p)
    return np.asarray(np.where(p > 0, p * (log_p - log_q), 0.0).sum(axis=-1))


def spread_of(values: Sequence[float] | Sequence[bool] | np.ndarray, rows: Sequence[int], count: int) -> float:
    """The standard error of a mean over ``count`` positions of such rows, whose positions go together.

    Args:
        values: of each position, a row's behind each other.
        rows: how many of them each row has.
        count: positions.
    """
    known = np.asarray(values, dtype=np.float64)
    if not known.size:
        return 0.0
    apart = np.split(known - known.mean(), np.cumsum(rows)[:-1])
    return float(np.sqrt(sum(part.sum() ** 2 for part in apart) / (known.size * count)))


def _cases(asked: Asked, name: str, found: _Compared, gate: Gate) -> list[Case]:
    worst = None if found.worst[1] is None else found.worst[1].to_json()
    label = f"{name}: " if len(asked.outputs) > 1 else ""
    drawn = len(found.values) - found.given
    ways = [(found.given, "of given prompts"), (drawn, "of padded batches" if not found.given else "of drawn ones")]
    where = "over " + " and ".join(f"{count} real positions {words}" for count, words in ways if count)
    mean = float(np.mean(found.values)) if found.values else float("nan")
    count = max(POSITIONS, found.given)
    spread = spread_of(found.values, found.rows, count)
    if not found.agree:
        note = f"{mean:.3g} {where}; the gate asks for {gate.distance:g} or less: {gate.because}"
        return [Case(f"{label}relative distance", mean, gate.distance, worst, note, spread=spread)]
    share = float(np.mean(found.agree))
    asks = f"top-1 agreement {share:.4f} {where}; the gate asks for {gate.agreement:g} or more: {gate.because}"
    nats = f"{mean:.3g} nats {where}; the gate asks for {gate.divergence:g} or less: {gate.because}"
    choices = spread_of(found.agree, found.rows, count)
    return [
        Case(f"{label}top-1 disagreement", 1 - share, round(1 - gate.agreement, 6), worst, asks, spread=choices),
        Case(f"{label}mean KL divergence", mean, gate.divergence, worst, nats, spread=spread),
    ]
