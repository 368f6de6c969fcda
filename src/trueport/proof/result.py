"""What a proof consists of."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

PASS, FAIL, NOT_APPLICABLE = "pass", "fail", "not applicable"
SCHEMA_VERSION = 1
FOLDER = "folder"
"""The component of clauses about files alone, which prove nothing of what is in them."""


@dataclass(frozen=True)
class Case:
    """One comparison: ``error`` over ``budget`` fails it; None for a comparison that could not be made.

    One that was ``left_out`` proves nothing; its note says why. ``spread`` is the standard error of a mean over as many
    positions as a proof compares.
    """

    case: str
    error: float | None
    budget: float
    worst_input: dict[str, Any] | None = None
    note: str = ""
    left_out: bool = False
    spread: float = 0.0

    @property
    def failed(self) -> bool:
        """Whether the error exceeds its budget; NaN does."""
        return self.error is None or not self.error <= self.budget

    @property
    def ratio(self) -> float:
        """Error in budgets."""
        if self.error is None:
            return float("inf")
        return self.error / self.budget if self.budget else (0.0 if self.error == 0 else float("inf"))

    def to_json(self) -> dict[str, Any]:
        """As proof.json stores it; a number that is not finite becomes null."""
        error = self.error if self.error is not None and abs(self.error) < float("inf") else None
        return {
            "case": self.case,
            "error": error,
            "budget": self.budget,
            "worst_input": self.worst_input,
            "note": self.note,
        }


@dataclass(frozen=True)
class ClauseResult:
    """One clause's verdict; ``left_out`` are the cases that were not asked, and why; ``mend`` is what to do, if known."""

    clause: str
    component: str
    status: str
    reason: str
    cases: tuple[Case, ...] = field(default=())
    left_out: tuple[str, ...] = ()
    mend: str = ""

    def to_json(self) -> dict[str, Any]:
        """As proof.json stores it."""
        return {
            "clause": self.clause,
            "component": self.component,
            "status": self.status,
            "reason": self.reason,
            "mend": self.mend,
            "left_out": list(self.left_out),
            "cases": [case.to_json() for case in self.cases],
        }


@dataclass(frozen=True)
class Proof:
    """All clauses of one artefact; ``notes`` tell what was done or left out to keep to the proof's memory."""

    seed: int
    clauses: tuple[ClauseResult, ...]
    reference: dict[str, Any] | None
    tolerance: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def proven(self) -> bool:
        """No clause failed, and at least one applied."""
        asked = [clause.status for clause in self.clauses if clause.component != FOLDER]
        return not self.failures() and PASS in asked

    def failures(self) -> list[ClauseResult]:
        """The clauses that failed."""
        return [clause for clause in self.clauses if clause.status == FAIL]

    def _left_out(self) -> list[str]:
        """The cases that were not asked, with their clauses."""
        return [f"Not asked: {clause.clause}, {words}" for clause in self.clauses for words in clause.left_out]

    def to_json(self) -> dict[str, Any]:
        """The content of proof.json."""
        return {
            "schema_version": SCHEMA_VERSION,
            "verdict": "proven" if self.proven else "failed",
            "seed": self.seed,
            "reference": self.reference,
            "tolerance": self.tolerance,
            "notes": [*self.notes, *self._left_out()],
            "clauses": [clause.to_json() for clause in self.clauses],
        }
