"""``state``: two runs over a split input equal one run over the whole; rows that change places take their state along."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.clauses.cache import chunkings, words
from trueport.proof.module import Arrays, AskedModule, sizes_of
from trueport.proof.result import Case
from trueport.roles.steps import cut, joined, run_steps, state_sizes

if TYPE_CHECKING:
    from trueport.interface import Interface

STEPS = 4
"""Calls in a row, where a call has no length to be split."""


def ask(asked: Asked | AskedModule) -> list[Case]:
    """Every chunking from the beginning on, against the original's own steps and against its whole."""
    if not isinstance(asked, AskedModule):
        raise NotApplicableError("the state is a key-value cache or none: see cache")
    if not asked.interface.state:
        raise NotApplicableError("the module keeps no state")
    if asked.time is None:
        return _repeated(asked)
    length = asked.fits(asked.time, 10)
    if length < 3:
        raise NotApplicableError(f"the module takes {length} steps at most")
    sizes = {name: size for name, size in asked.sizes.items() if name in asked.interface.fed} | {asked.time: length}
    cases = []
    batch = asked.interface.rows
    for rows in dict.fromkeys((0,) if batch is None else (asked.fits(batch, 3), asked.fits(batch, 1))):
        given = sizes | ({} if batch is None else {batch: rows})
        name = f"batch {rows}, " if rows else ""
        feeds = _plain(asked, f"state {rows}", given)
        for chunks in chunkings(length):
            case = f"{name}chunks {words(chunks)}"
            cases.append(asked.attempt(case, feeds, _split(asked, case, feeds, chunks)))
        if rows > 1:
            case = f"{name}rows reordered and repeated"
            cases.append(asked.attempt(case, feeds, _reordered(asked, case, feeds, length, rows)))
    return cases


def _plain(asked: AskedModule, case: str, sizes: Mapping[str, int]) -> Arrays:
    """Inputs of the whole; before the first call a state has no length."""
    full = asked.drawn.draw(case, {dimension.name: 0 for dimension in asked.interface.dimensions} | dict(sizes))
    return {tensor.name: full[tensor.name] for tensor in asked.interface.plain_inputs}


def _begun(interface: Interface, asked: AskedModule, feeds: Mapping[str, Any]) -> Any:
    return asked.session.empty_state(sizes_of(interface, feeds))  # type: ignore[arg-type]


def _stepped(asked: AskedModule, feeds: Arrays, chunks: list[int]) -> dict[str, list[Any]]:
    """The artefact's outputs, step by step."""
    assert asked.time is not None
    state = _begun(asked.interface, asked, feeds)
    pieces, _ = run_steps(asked.interface, feeds, asked.time, chunks, asked.session.step, state)
    return pieces


def _split(asked: AskedModule, case: str, feeds: Arrays, chunks: list[int]) -> Any:
    def ask() -> Case:
        assert asked.time is not None
        pieces = _stepped(asked, feeds, chunks)
        if asked.exact is None:
            whole = {name: parts[0] for name, parts in _stepped(asked, feeds, [sum(chunks)]).items()}
            return asked.compare(case, feeds, _numpy(joined(pieces, whole)), _wide(whole))
        whole, _ = asked.exact.step(feeds, None)
        own, _ = run_steps(asked.interface, feeds, asked.time, chunks, asked.exact.step, None)
        truth = _numpy(joined(own, whole))
        got = _numpy(joined(pieces, whole))
        found = asked.compare(case, feeds, got, truth)
        against = asked.compare(case, feeds, got, whole)
        if against.ratio <= found.ratio or found.failed:
            return found
        # A window that forgets, or a length that tells: then the original's own steps are the truth.
        itself = asked.compare(case, feeds, truth, whole)
        if against.failed and itself.failed:
            return Case(case, found.error, found.budget, None, "the original itself differs between steps and whole")
        return against

    return ask


def _reordered(asked: AskedModule, case: str, feeds: Arrays, length: int, count: int) -> Any:
    """Half, then rows in another order: as if they had stood there from the beginning."""
    rows = [count - 1, *[0] * (count - 1)]

    def ask() -> Case:
        assert asked.time is not None
        half, end = length // 2, length
        state = _begun(asked.interface, asked, feeds)
        _, state = asked.session.step(cut(asked.interface, feeds, asked.time, 0, half), state)
        batch = asked.interface.rows
        axes = {t.name: t.shape.index(batch) for t in asked.interface.plain_inputs if batch in t.shape}
        moved = {n: np.take(a, rows, axes[n]) if n in axes else a for n, a in feeds.items()}
        state = state.take(rows)
        got, _ = asked.session.step(cut(asked.interface, moved, asked.time, half, end, state), state)
        asker = asked.exact if asked.exact is not None else asked.session
        begun = None if asked.exact is not None else _begun(asked.interface, asked, moved)
        _, begun = asker.step(cut(asked.interface, moved, asked.time, 0, half), begun)
        truth, _ = asker.step(cut(asked.interface, moved, asked.time, half, end, begun), begun)
        return asked.compare(case, moved, _wide(got), _wide(truth))

    return ask


def _repeated(asked: AskedModule) -> list[Case]:
    """Calls in a row, each with inputs of its own, against the original's: as long as the sample, shorter, and by turns."""
    if asked.exact is None:
        raise NotApplicableError("needs the original: its calls have no length to be split")
    usual = {name: asked.fits(name, size) for name, size in asked.sizes.items() if name in asked.interface.fed}
    least = {name: asked.fits(name, 1) for name in usual}
    rows = {name: size for name, size in usual.items() if name == asked.interface.rows}
    turns = [
        least | rows,
        usual,
        {name: asked.fits(name, size + 3) for name, size in usual.items()} | rows,
        least | rows,
    ]
    ways = {f"{STEPS} calls in a row": [usual] * STEPS}
    ways |= {"calls of the smallest sizes": [least] * STEPS, "calls of other lengths": turns}
    return [_in_a_row(asked, name, sizes) for name, sizes in ways.items()]


def _in_a_row(asked: AskedModule, case: str, calls: Sequence[dict[str, int]]) -> Case:
    """One call of each of these sizes, from the beginning on."""
    first = _plain(asked, f"{case} 0", calls[0])

    def ask() -> Case:
        assert asked.exact is not None
        state, own, worst = _begun(asked.interface, asked, first), None, Case(case, 0.0, 0.0)
        for number, sizes in enumerate(calls):
            # A mask over past and new is as long as the state has become.
            feeds = _plain(asked, f"{case} {number}", state_sizes(asked.interface, state) | sizes)
            truth, own = asked.exact.step(feeds, own)
            got, state = asked.session.step(feeds, state)
            found = asked.compare(f"{case}, the {number + 1}th", feeds, got, truth)
            worst = found if found.ratio >= worst.ratio else worst
        return worst

    return asked.attempt(case, first, ask)


def _numpy(tensors: Mapping[str, Any]) -> Arrays:
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}


def _wide(arrays: Mapping[str, Any]) -> Arrays:
    return {n: np.asarray(a, dtype=np.float64) if np.asarray(a).dtype.kind == "f" else a for n, a in arrays.items()}
