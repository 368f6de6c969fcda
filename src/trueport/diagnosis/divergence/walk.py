"""The first operation whose result differs while all that it reads agrees."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from trueport.diagnosis.divergence.flow import Alignment, Flow, Operation
from trueport.proof.tolerance import EPSILONS, MULTIPLE

Arrays = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Difference:
    """How far a value lies from what it is to be: the largest absolute error against its budget."""

    error: float
    budget: float
    words: str = ""

    @property
    def beyond(self) -> bool:
        """Whether it is more than noise."""
        return not self.error <= self.budget

    @property
    def ratio(self) -> float:
        """Error in budgets; infinite where nothing was allowed."""
        return self.error / self.budget if self.budget else float("inf") if self.beyond else 0.0


def difference(value: np.ndarray, truth: np.ndarray, floor: float) -> Difference:
    """Compare one value with its truth.

    Args:
        value: any shape and dtype.
        truth: what it is to be; where it is not finite, any value that is not finite will do.
        floor: the noise floor, relative to the truth's largest magnitude; integers and booleans have none.
    """
    if value.shape != truth.shape:
        return Difference(float("inf"), 0.0, f"shape {value.shape} where the original has {truth.shape}")
    if not truth.size:
        return Difference(0.0, 0.0)
    if not is_float(truth) or not is_float(value):
        wrong = int((value != truth).sum())
        return Difference(float(wrong), 0.0, f"{wrong} of {truth.size} elements" if wrong else "")
    got, wanted = value.astype(np.float64), truth.astype(np.float64)
    real = np.isfinite(wanted)
    if (np.isfinite(got) != real).any():
        return Difference(float("inf"), 0.0, "not finite where the original is, or the other way round")
    if not real.any():
        return Difference(0.0, 0.0)
    error = float(np.abs(got[real] - wanted[real]).max())
    return Difference(error, MULTIPLE * floor * float(np.abs(wanted[real]).max()))


def is_float(array: np.ndarray) -> bool:
    """Whether its numbers have fractions, bfloat16 included."""
    return array.dtype.kind == "f" or array.dtype.name == "bfloat16"


def noise_floor(truth: np.ndarray, others: list[np.ndarray]) -> float:
    """The largest relative difference between one value and what it was with its weights moved by one ulp."""
    name = truth.dtype.name
    floor = EPSILONS.get(name, 0.0)
    if not is_float(truth) or not truth.size:
        return floor
    wanted = truth.astype(np.float64)
    scale = float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0))
    for other in others:
        if other.shape == truth.shape and scale:
            moved = np.abs(other.astype(np.float64) - wanted)
            floor = max(floor, float(moved[np.isfinite(moved)].max(initial=0.0)) / scale)
    return floor


def first_divergence(
    flow: Flow, alignment: Alignment, differences: Mapping[str, Difference], *, start: str = "", strict: bool = False
) -> tuple[Operation, str, Difference] | None:
    """The first operation that reads what agrees and gives what does not, the value, and how far it is off.

    Walks back from the outputs that differ through all that differs or cannot be compared, so that what has no
    counterpart but leads back to agreement is not blamed.

    Args:
        flow: the suspect.
        alignment: of its values with the original's.
        differences: of values that could be compared; the rest count as agreeing where they are computed equally, or
            from constants alone.
        start: the value to walk back from; all outputs by default.
        strict: whether noise counts as a difference.
    """
    fixed = _fixed(flow)

    def agrees(name: str) -> bool:
        found = differences.get(name)
        if found is not None:
            return not (found.error if strict else found.beyond)
        return not name or name in flow.inputs or name in fixed or name in alignment.equal

    waiting = [name for name in ([start] if start else flow.outputs) if not agrees(name)]
    seen: set[str] = set()
    guilty: set[str] = set()
    while waiting:
        name = waiting.pop()
        operation = flow.producers.get(name)
        if name in seen or operation is None:
            continue
        seen.add(name)
        disagreeing = [each for each in operation.inputs if not agrees(each)]
        if not disagreeing:
            guilty.add(name)
        waiting += disagreeing
    for operation in flow.operations:
        for name in operation.outputs:
            if name in guilty:
                return operation, name, differences.get(name, Difference(float("nan"), 0.0))
    return None


def _fixed(flow: Flow) -> set[str]:
    """Constants, and what is computed from them alone."""
    fixed = set(flow.constants)
    for operation in flow.operations:
        if operation.inputs and all(not name or name in fixed for name in operation.inputs):
            fixed.update(operation.outputs)
    return fixed
