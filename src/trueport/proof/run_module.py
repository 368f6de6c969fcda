"""From the session of a module's artefact, and the module where there is one, to a proof."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from trueport.proof.clauses import check_names, state
from trueport.proof.draws import drawn_of
from trueport.proof.memory import ANY, Memory
from trueport.proof.module import AskedModule, Original, ask_finite, ask_shapes, tolerance_of
from trueport.proof.result import NOT_APPLICABLE, Case, ClauseResult, Proof
from trueport.proof.run import SEED, judged

if TYPE_CHECKING:
    from torch import nn

    from trueport.proof.subject import Session

CLAUSES: dict[str, Callable[[AskedModule], Sequence[Case]]] = {
    "shapes": ask_shapes,
    "state": state.ask,
    "finite": ask_finite,
}
"""What can be asked of a module whose inputs' meaning is not known."""


def prove_module(
    session: Session,
    source: Mapping[str, Any],
    *,
    original: nn.Module | None,
    dtype: str,
    depth: int,
    guards: Sequence[int] = (),
    clauses: Sequence[str] | None = None,
    seed: int = SEED,
    progress: Callable[[str], None] | None = None,
    memory: Memory = ANY,
) -> Proof:
    """Ask every clause that a module of any kind can be asked.

    Args:
        session: the artefact's one component, through its runtime.
        source: the manifest's description of the module: its calls, draws and traced sizes.
        original: the unpatched module; None judges the artefact by itself.
        dtype: the artefact's float dtype.
        depth: operators in a row, for the tolerance without the original.
        guards: sizes from which on the capture made no promise.
        clauses: names of those to ask; None asks all.
        seed: of all inputs.
        progress: told each clause's name.
        memory: how the proof keeps to its memory.
    """
    from trueport.modules import calls_of

    drawn, sizes = drawn_of(session.interface, source, seed)
    own = None if original is None else Original(original, *calls_of(source, session.interface), session.interface)
    tolerance, exact = tolerance_of(own, drawn, sizes, dtype, depth, memory)
    asked = AskedModule(session, drawn, sizes, source.get("time"), tolerance, own, exact, tuple(guards), memory)
    results = []
    for name in check_names(clauses):
        if progress is not None:
            progress(name)
        results.append(_judge(name, asked))
    described = None if original is None else {"class": type(original).__name__, "dtype": source.get("dtype")}
    words = {"multiple": tolerance.multiple, "noise_floor": tolerance.floor(), "words": tolerance.words}
    return Proof(seed, tuple(results), described, words)


def _judge(name: str, asked: AskedModule) -> ClauseResult:
    if name not in CLAUSES:
        return ClauseResult(name, "model", NOT_APPLICABLE, "the meaning of a custom module's inputs is not known")
    return judged(name, "model", lambda: CLAUSES[name](asked))
