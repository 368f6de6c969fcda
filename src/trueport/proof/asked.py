"""What every clause works with: the artefact, the original where there is one, inputs, budgets, and one comparison."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.interface import Interface
from trueport.proof.inputs import Batch, Inputs
from trueport.proof.memory import ANY, EAGER, HELD, SCORES, Memory, TooLargeError
from trueport.proof.positions import positions
from trueport.proof.reference import OriginalError, Reference
from trueport.proof.result import Case
from trueport.proof.subject import Subject
from trueport.proof.tolerance import APART, DROWNED, MEASURED, Tolerance

if TYPE_CHECKING:
    from trueport.proof.quantised import Quantised


class NotApplicableError(Exception):
    """A clause has nothing to ask of this artefact; the message says why."""


@dataclass(frozen=True)
class Asked:
    """One artefact under proof.

    Attributes:
        subject: the artefact, through its runtime.
        role: its role.
        config: the model's config.
        inputs: draws batches.
        outputs: the interface whose plain outputs are compared, by name.
        padded: the interface of the side that can be padded.
        tolerance: budgets.
        own, exact: the original in its own dtype and in float64; None without the original.
        runnable: the loaded artefact, with ``generate``; None where it cannot generate.
        lengths: interesting lengths of this model: the traced one and one far past it.
        maskable: whether the model itself, though perhaps not its graph, takes a mask.
        cached: whether the decoder's graph can go on from an earlier step.
        guards: sizes from which on the capture made no promise.
        prompts: how many ``generate`` is asked with.
        quantised: how the artefact is quantised; None where it computes in floats.
        memory: what the proof may take.
    """

    subject: Subject
    role: str
    config: Any
    inputs: Inputs
    outputs: dict[str, tuple[int | str, ...]]
    padded: Interface
    tolerance: Tolerance
    own: Reference | None
    exact: Reference | None
    runnable: Any
    lengths: tuple[int, int]
    maskable: bool = True
    cached: bool = True
    guards: tuple[int, ...] = ()
    prompts: int = 3
    quantised: Quantised | None = None
    memory: Memory = ANY

    @cached_property
    def masked(self) -> bool:
        """Whether the artefact takes an attention mask for its padded side."""
        return self.padded.has_input("attention_mask")

    def require_original(self) -> Reference:
        """The float64 original.

        Raises:
            NotApplicableError: there is none.
        """
        if self.exact is None:
            raise NotApplicableError("needs the original: give --against MODEL")
        return self.exact

    def require_mask(self) -> None:
        """Raise NotApplicableError where the model itself takes no mask."""
        if self.inputs.features is not None:
            raise NotApplicableError("the source has one fixed shape, without a mask")
        if not self.masked and not self.maskable:
            raise NotApplicableError("the model takes no attention_mask")

    def real(self, name: str, batch: Batch) -> np.ndarray:
        """Which leading positions of output ``name`` must be right: (batch,) or (batch, length) booleans."""
        rows: np.ndarray = np.asarray(batch.mask.any(axis=1))
        if self.role == "seq2seq" and name == "logits":
            # A wholly masked source is read by the cross-attention; only the original says what then comes out.
            decides = rows if self.exact is None else np.ones_like(rows)
            return np.repeat(decides[:, None], batch.decoded.shape[1], axis=1)
        found = positions(self.outputs[name], self.padded, batch)
        if found is not None:
            return found
        if self.role == "seq2seq":
            return np.ones((batch.size, 1), dtype=bool) if batch.ids.ndim > 2 else batch.mask == 1
        return rows

    def span(self, name: str, batch: Batch, row: int) -> slice | None:
        """Where in an output belongs what a row gives alone, without its padding; None where it has no such positions."""
        real = self.real(name, batch)
        if real.ndim == 1 or batch.ids.ndim > 2 or (self.role == "seq2seq" and name == "logits"):
            return None
        found = np.flatnonzero(real[row])
        return slice(int(found[0]), int(found[-1]) + 1) if len(found) else None

    def afford(self, batch: Batch) -> None:
        """Raise TooLargeError for a batch whose answers the memory of the proof does not hold."""
        length = max(self.inputs.lengthy(batch), batch.decoded.shape[1] if batch.target is not None else 0)
        # What has no axis of tokens is small; an axis with a name that is not the tokens' is as wide as the vocabulary.
        widths = [
            prod(size if isinstance(size, int) else self.inputs.vocabulary for size in shape[2:])
            for shape in self.outputs.values()
        ]
        counts = getattr(self.config, "num_attention_heads", 0) or 0  # of some models a list, one for each stage
        heads = max(counts, default=0) if isinstance(counts, (list, tuple)) else int(counts)
        told = getattr(getattr(self.exact, "model", None), "config", None)  # graphs in its place tell nothing
        stepwise = getattr(told, "_attn_implementation", "") != "sdpa"
        scores = heads * length * (SCORES + (EAGER if stepwise else 0))
        self.memory.afford(f"{batch.size} x {length} tokens", batch.size * length * (sum(widths) * HELD + scores))

    def ask(self, batch: Batch) -> dict[str, np.ndarray]:
        """The artefact's answer as float64.

        Raises:
            TrueportError: it refuses the batch.
        """
        self.afford(batch)
        return {
            name: value.astype(np.float64)
            for name, value in self.subject.forward(batch).items()
            if name in self.outputs
        }

    def compare(
        self,
        case: str,
        batch: Batch,
        got: dict[str, np.ndarray],
        truth: dict[str, np.ndarray],
        *,
        only: dict[str, np.ndarray] | None = None,
        note: str = "",
    ) -> Case:
        """The worst output of the worst row, against its budget.

        Args:
            only: positions to compare by output, in place of all real ones.
        """
        worst = Case(case, 0.0, self.tolerance.budget("", 1.0), None, note)
        for name in got:
            real = self.real(name, batch) if only is None else only[name]
            if not real.any() or name not in truth:
                continue
            value, wanted = got[name], truth[name]
            if real.ndim == 2 and real.shape[1] not in (1, *value.shape[1:2]):
                note = (
                    f"{name} has shape {value.shape}, and {real.shape[1]} positions where the manifest tells its axes"
                )
                return Case(case, None, 0.0, batch.to_json(), note)
            if value.shape != wanted.shape:
                return Case(case, None, 0.0, batch.to_json(), f"{name} has shape {value.shape}, not {wanted.shape}")
            found = self._judged(
                case, name, batch, np.broadcast_to(real, value.shape[: real.ndim]), value, wanted, note
            )
            if found.ratio >= worst.ratio or worst.worst_input is None:
                worst = found
        return worst

    def _judged(
        self, case: str, name: str, batch: Batch, real: np.ndarray, value: np.ndarray, wanted: np.ndarray, note: str
    ) -> Case:
        rows = [_farthest(*row) for row in zip(real, value, wanted, strict=True)]  # one at a time: they may be large
        row = int(np.argmax([error for error, _ in rows]))
        error = None if np.isinf(rows[row][0]) else rows[row][0]
        scale = float(np.max([scale for _, scale in rows]))
        budget = self.tolerance.budget(name, scale)
        why = "not finite" if error is None else ("" if self.tolerance.tells(name) else DROWNED)
        error = None if why else error
        if error is not None and error > budget:
            budget = self._here(name, batch, real, budget)
        failed = error is None or error > budget
        words = [name if failed and len(self.outputs) > 1 else "", why, note]
        return Case(case, error, budget, batch.take([row]).to_json(), "; ".join(part for part in words if part))

    def _here(self, name: str, batch: Batch, real: np.ndarray, budget: float) -> float:
        """The budget of a batch on which the original's own rounding costs more than where the noise was measured.

        What it costs on this batch, as often as ever; and no more than ``APART`` times what was measured, or than a random
        walk of so many more tokens makes of that.
        """
        if self.own is None or self.exact is None or self.quantised is not None:
            return budget
        length = max(self.inputs.lengthy(batch), 0 if batch.target is None else batch.target.shape[1])
        try:
            own, exact = self.own.forward(batch)[name], self.exact.forward(batch)[name]
        except OriginalError:
            return budget
        noise = max(_farthest(*row)[0] for row in zip(real, own, exact, strict=True))
        most = budget * max(APART, float(np.sqrt(length / MEASURED)))
        return float(max(budget, min(self.tolerance.multiple * noise, most))) if np.isfinite(noise) else budget

    def refused(self, case: str, batch: Batch, error: Exception) -> Case:
        """A failed case: the artefact would not run a legal batch; what the original refuses too is not one.

        What was too large for the memory of the proof is left out.
        """
        if isinstance(error, TooLargeError):
            return Case(case, 0.0, 0.0, None, error.problem, left_out=True)
        if isinstance(error, OriginalError) or self._original_refuses(batch):
            return Case(case, 0.0, 0.0, None, "the original itself refuses this input")
        return Case(case, None, 0.0, batch.take([0]).to_json(), str(error))

    def _original_refuses(self, batch: Batch) -> bool:
        try:
            return self.exact is not None and not self.exact.forward(batch)
        except OriginalError:
            return True


def _farthest(real: np.ndarray, value: np.ndarray, wanted: np.ndarray) -> tuple[float, float]:
    """The largest difference and the largest magnitude in one row at real positions; inf for a NaN."""
    if not real.any():
        return 0.0, 0.0
    if not real.all():
        value, wanted = value[real], wanted[real]
    difference = np.abs(value - wanted)
    largest = float(difference.max(initial=0.0))
    return np.inf if np.isnan(largest) else largest, float(max(wanted.max(initial=0.0), -wanted.min(initial=0.0)))
