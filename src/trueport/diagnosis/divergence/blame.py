"""From values that differ to the one operation to blame."""

from __future__ import annotations

from collections.abc import Mapping

from trueport.diagnosis.divergence.against import ARTEFACT, Divergence
from trueport.diagnosis.divergence.explain import explain, origin_of
from trueport.diagnosis.divergence.flow import Alignment, Flow, Origin
from trueport.diagnosis.divergence.walk import Difference, first_divergence
from trueport.errors import TrueportError


def blamed(
    label: str, suspect: Flow, fresh: Flow, alignment: Alignment, differences: Mapping[str, Difference], inputs: str
) -> Divergence:
    """The first operation of ``suspect`` whose result differs, and what it does otherwise.

    An operation that equals its counterpart, and reads what differs within the noise, only makes a fault visible (a
    softmax over large scores does): then the fault is where its input first differs at all, as equal kernels on
    equal numbers give equal numbers.
    """
    found = first_divergence(suspect, alignment, differences)
    if found is None:
        raise TrueportError(
            f"{label}: its outputs differ and no operation does", "Report it: Trueport's comparison is at fault."
        )
    operation, name, gap = found
    reasons = explain(operation, suspect, fresh, alignment)
    if not reasons:
        deeper = first_divergence(suspect, alignment, differences, start=name, strict=True)
        if deeper is not None and deeper[0] is not operation:
            place = f"{operation.kind} {operation.name}"
            grown = f"it exceeds the noise at {place}, where {gap.error:.3g} is past {gap.budget:.3g}"
            operation, _, gap = deeper
            reasons = [*explain(operation, suspect, fresh, alignment), grown]
    origin = origin_of(operation, suspect, fresh, alignment)
    return Divergence(
        label,
        ARTEFACT,
        operation.name,
        operation.kind,
        Origin(origin.module or operation.origin.module, origin.line),
        gap.error,
        gap.budget,
        (*reasons, *([gap.words] if gap.words else [])),
        inputs,
    )
