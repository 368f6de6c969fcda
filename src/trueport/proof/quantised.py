"""A quantised artefact under proof: close to the original by a gate, and exact in all that it owes to itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueport.errors import ArtifactError
from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.calibration import Prompts
from trueport.proof.clauses import CLAUSES
from trueport.proof.result import Case
from trueport.proof.tolerance import Tolerance
from trueport.targets.quantized import Gate, loosest

STEP = 2.0**-8
"""One of an int8 activation's 256 steps, relative to its range."""
GATE = "quality"
"""The clause that asks a gate."""
WITH_ORIGINAL = (GATE, "generate", "finite", "range")
"""Clauses that hold a quantised artefact against the original; all others hold it against itself."""
MIXED = "auto"
"""The kind whose layers are each of one of the others."""


@dataclass(frozen=True)
class Quantised:
    """What a proof must know of a quantisation.

    Attributes:
        kind: one that the target has a gate for.
        layers: how many the files themselves show.
        gate: the target's for the forms of these layers; a mix may hold layers of one form alone.
        prompts: tokens of given prompts that the gate asks first; it draws its own where there are none.
    """

    kind: str
    layers: int
    gate: Gate
    prompts: Prompts = ()


def quantised_of(
    manifest: Mapping[str, Any],
    gates: Mapping[str, Gate],
    layers: Callable[[], Mapping[str, int]],
    prompts: Prompts = (),
) -> Quantised | None:
    """The quantisation that a manifest names and its files bear out; None for a float artefact, which owes more.

    Args:
        manifest: of the artefact; the thresholds and layers that it states are for readers, and never read.
        gates: the target's.
        layers: counts the quantised layers in the files themselves, by kind: a manifest must not choose its tolerance.
        prompts: that the gate asks.

    Raises:
        ArtifactError: there is no gate for it, or it is nothing that an export writes, or not what the files hold.
    """
    entry = manifest.get("quantize")
    if entry is None:
        return None
    if not isinstance(entry, Mapping) or not isinstance(entry.get("layers"), list):
        raise ArtifactError("The manifest's quantize names no kind and layers", "Export again.")
    kind = str(entry.get("kind"))
    if kind not in gates:
        raise ArtifactError(
            f"The manifest says quantize {kind!r}, for which there is no gate", f"There is {', '.join(gates)}."
        )
    found = layers()
    others = sorted(set(found) - ({kind} if kind != MIXED else set(gates)))
    if others:
        raise ArtifactError(
            f"The manifest says quantize {kind!r}, and the files hold layers in {', '.join(others)}", "Export again."
        )
    return Quantised(kind, sum(found.values()), loosest(gates, found), prompts) if found else None


def tolerance(quantised: Quantised) -> Tolerance:
    """How far the artefact may lie from itself, relative to an output's largest magnitude.

    Each token has its own scale, or all share one that is fixed: no token's numbers depend on another's. But a float
    that lies on the edge between two steps is rounded up in one batch and down in another, because the float
    operators before it sum in another order; one step of 256 in each layer, independent of each other, adds up like a
    random walk (Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019). Measured on one x86 processor, nothing differs at
    all (docs/quantisation.md); the budget is for kernels that sum in another order.
    """
    walk = STEP * float(np.sqrt(max(quantised.layers, 1)))
    words = (
        "the artefact against itself: one step of an int8 activation times the square root of the "
        f"{quantised.layers} quantised layers, as roundings flip where float sums differ in their last place"
    )
    return Tolerance({}, walk, 1.0, words)


def ask(name: str, asked: Asked) -> Sequence[Case]:
    """One clause of a quantised artefact."""
    if name in WITH_ORIGINAL:
        return CLAUSES[name](asked)
    itself = replace(asked, own=None, exact=None)
    try:
        cases = CLAUSES[name](itself)
    except NotApplicableError as reason:
        if asked.own is not None and "needs the original" in str(reason):
            raise NotApplicableError(
                "it compares with the original alone; quality asks past windows that are affordable"
            ) from None
        raise
    if asked.own is None or not any(case.failed for case in cases):
        return cases
    natural = {case.case for case in CLAUSES[name](replace(itself, subject=asked.own)) if case.failed}
    words = "the original itself does not keep this"
    return [replace(c, error=0.0, note=words) if c.failed and c.case in natural else c for c in cases]
