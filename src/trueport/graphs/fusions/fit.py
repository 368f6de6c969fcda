"""Fusions tried on a folder, proven, and undone where the proof falls."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import MANIFEST, write_json
from trueport.errors import ArtifactError, TrueportError
from trueport.graphs.fusions.apply import fuse
from trueport.interface import Interface
from trueport.progress import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

    from trueport.graphs.fusions.table import Fusion
    from trueport.proof.result import ClauseResult, Proof

Judge = Callable[[], "Proof"]
"""The whole proof of the folder as it lies there now."""


@dataclass(frozen=True)
class Optimized:
    """What was fused.

    Attributes:
        folder: where the artefact lies.
        provider: the execution provider that the fusions were chosen for.
        kept: how often each fusion matched that is in the graphs now, by name.
        undone: why others were taken out again, by name.
        absent: why the rest did nothing, by name.
        proof: of the folder as it is now; None where the runtime cannot even open it.
        reason: why that proof does not hold; empty where it does.
    """

    folder: Path
    provider: str
    kept: dict[str, int] = field(default_factory=dict)
    undone: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    proof: Proof | None = None
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """The manifest's ``optimized``."""
        return {"provider": self.provider, "fusions": self.kept, "undone": self.undone, "absent": self.absent}

    def text(self) -> str:
        """One line for each fusion, and what became of the folder."""
        from trueport.words import count_words, fusion_words

        lines = fusion_words(self.to_json())
        done = f"{count_words(len(self.kept), 'fusion')} for {self.provider}, {len(self.undone)} undone"
        return "\n".join([*lines, f"{self.folder}: {done if self.kept else f'left as it was ({done})'}."])


def fit(
    staging: Path,
    manifest: dict[str, Any],
    fusions: Sequence[Fusion],
    judge: Judge,
    tell: Progress,
    *,
    folder: Path,
    provider: str,
) -> Optimized:
    """Fuse the graphs in ``staging`` as far as its proof holds; graphs and manifest are those of the result then.

    All fusions are tried together. Where the proof falls, they are added one after the other, and each that makes it
    fall is undone.

    Args:
        staging: an artefact's folder without fusions, its manifest included.
        manifest: the same manifest; its components follow the graphs.
        fusions: in the order in which they are applied.
        judge: proves ``staging`` as it is.
        tell: told the name of each phase.
        folder: where the result will lie.
        provider: for the report.
    """
    trial = _Trial(staging, manifest, judge)
    tell("fuse")
    tried = trial.apply(fusions)
    absent = {name: reason for name, (count, reason) in tried.items() if not count}
    present = [fusion for fusion in fusions if fusion.name not in absent]
    proof, reason = trial.judged()
    kept, undone = list(present), dict[str, str]()
    if reason:
        kept, undone = _alone(trial, present, reason, tell)
        trial.apply(kept)
        proof, reason = trial.judged()
    counts = {fusion.name: tried[fusion.name][0] for fusion in kept}
    return Optimized(folder, provider, counts, undone, absent, proof, reason)


def _alone(
    trial: _Trial, fusions: Sequence[Fusion], together: str, tell: Progress
) -> tuple[list[Fusion], dict[str, str]]:
    """Fusions added one after the other: those with which the proof holds, and by name why it does not with others."""
    if len(fusions) < 2:
        return [], {fusion.name: together for fusion in fusions}
    kept: list[Fusion] = []
    undone: dict[str, str] = {}
    for fusion in fusions:
        tell(f"fuse {fusion.name}")
        count, why = trial.apply([*kept, fusion])[fusion.name]
        reason = trial.judged()[1] if count else why
        if reason:
            undone[fusion.name] = reason
        else:
            kept.append(fusion)
    return kept, undone


class _Trial:
    """A folder whose graphs are fused again and again, each time from the graphs without fusions."""

    def __init__(self, staging: Path, manifest: dict[str, Any], judge: Judge) -> None:
        from trueport.graphs.loading import load

        self.staging, self.manifest, self.judge = staging, manifest, judge
        self.plain = {
            name: dict(entry) for name, entry in manifest["components"].items() if entry.get("target") == "onnx"
        }
        if not self.plain:
            raise ArtifactError("The folder holds no ONNX graph to optimise", "Export with --to onnx.")
        self.bytes = {name: (staging / entry["file"]).read_bytes() for name, entry in self.plain.items()}
        self.models: Mapping[str, ir.Model] = {
            name: load(staging / entry["file"]) for name, entry in self.plain.items()
        }

    def apply(self, fusions: Sequence[Fusion]) -> dict[str, tuple[int, str]]:
        """Write the graphs with these fusions; by name how often each matched, and why it did not."""
        import onnx_ir as ir

        found = {fusion.name: (0, "") for fusion in fusions}
        for name, entry in self.plain.items():
            path = self.staging / entry["file"]
            model = self.models[name].clone()
            done = fuse(model, Interface.from_json(entry), fusions)
            if not any(applied.count for applied in done.values()):
                path.write_bytes(self.bytes[name])
                self.manifest["components"][name] = dict(entry)
            else:
                ir.save(model, path)
                interface = list(done.values())[-1].interface
                self.manifest["components"][name] = entry | {"depth": len(model.graph)} | interface.to_json()
            for key, applied in done.items():
                count, reason = found[key]
                found[key] = (count + applied.count, reason or applied.reason)
        write_json(self.staging / MANIFEST, self.manifest)
        return {name: (count, reason or "nothing matches") for name, (count, reason) in found.items()}

    def judged(self) -> tuple[Proof | None, str]:
        """The proof of the graphs as they are, and why it does not hold; None where they cannot even be opened."""
        try:
            proof = self.judge()
        except TrueportError as error:
            return None, self._placeless(error.problem)
        words = self._placeless("; ".join(map(_in_words, proof.failures())))
        return proof, words or ("" if proof.proven else "no clause applies")

    def _placeless(self, words: str) -> str:
        """Without the folder of this trial, which the runtime names and which is gone afterwards."""
        for place in (self.staging, self.staging.absolute(), self.staging.resolve()):
            words = words.replace(f"{place}{os.sep}", "")
        return words


def _in_words(clause: ClauseResult) -> str:
    """A failed clause: its worst case, and which others failed."""
    others = [case.case for case in clause.cases if case.failed and not clause.reason.startswith(f"{case.case}:")]
    too = f", and so {', '.join(others)}" if others else ""
    return f"{clause.clause}, {clause.reason}{too}"
