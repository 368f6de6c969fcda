"""``diagnose FOLDER --against MODEL``: what of an artefact leaves its original first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.diagnosis.divergence.flow import Origin
from trueport.errors import ArtifactError, TrueportError

if TYPE_CHECKING:
    from torch import nn

LOWERING, ARTEFACT, RUNTIME, CAPTURE = "lowering", "artefact", "runtime", "capture"


@dataclass(frozen=True)
class Divergence:
    """The first operation of one component whose result leaves the original beyond the noise floor.

    Attributes:
        component: of the artefact.
        stage: ``artefact`` (the file is not what the export of this original gives), ``lowering`` (the export itself
            changes what torch.export captured), ``runtime`` (its optimisations change what the graph says), or
            ``capture`` (the captured program, under its patches, is not the original).
        operation: its name in the file.
        kind: its operator.
        origin: module path and source line in the original.
        error: the largest absolute error of its result, and ``budget``, what is allowed; NaN where it cannot be observed.
        reasons: what it does otherwise than the one in its place.
        inputs: shapes of the inputs that show it.
    """

    component: str
    stage: str
    operation: str
    kind: str
    origin: Origin
    error: float
    budget: float
    reasons: tuple[str, ...] = ()
    inputs: str = ""

    def lines(self) -> list[str]:
        """In words."""
        place = f" in {self.origin.module}" if self.origin.module else ""
        found = [f"{self.component}: the first operation that diverges is {self.kind} {self.operation}{place}".rstrip()]
        if not self.kind:
            found = [f"{self.component}: {self.operation}"]
        if self.origin.line:
            found.append(f"  source: {self.origin.line}")
        if self.error == self.error:
            found.append(f"  its result is off by {self.error:.3g}, where {self.budget:.3g} is noise")
        found += [f"  {reason}" for reason in self.reasons]
        found.append(f"  {WORDS[self.stage]}")
        return [*found, f"  shown by {self.inputs}"] if self.inputs else found


WORDS = {
    ARTEFACT: "The file differs from what an export of the original gives. Export again.",
    LOWERING: "The export itself changes what torch.export captured: a fault of the lowering. Report it.",
    RUNTIME: "With its optimisations off, the runtime gives the original's results: it is the runtime's own fault.",
    CAPTURE: "The file is what torch.export captured; a patch or a rewrite changed the original. See `trueport patches`.",
}
"""What each stage means, and the mend."""
CLAUSES = ("shapes", "padding", "cache", "state")
"""What is asked of an artefact that is what an export of the original gives."""


@dataclass(frozen=True)
class Comparison:
    """What was found in each component; empty where everything agrees."""

    divergences: tuple[Divergence, ...]
    components: tuple[str, ...]

    @property
    def agrees(self) -> bool:
        """Whether no result leaves the original."""
        return not self.divergences

    def lines(self) -> list[str]:
        """All of it in words."""
        found = {divergence.component: divergence for divergence in self.divergences}
        return [
            line
            for name in self.components
            for line in (found[name].lines() if name in found else [f"{name}: every result agrees with the original"])
        ]


def diagnose_against(
    folder: str | Path, against: str | Path | nn.Module, *, trust_remote_code: bool = False
) -> Comparison:
    """Walk an artefact and its original, and name the first operation whose result diverges.

    Args:
        folder: one that Trueport wrote, of either target; changed since or not.
        against: the original; for a custom module the module itself.
        trust_remote_code: run Python files that lie in the original's checkpoint.

    Raises:
        TrueportError: the folder has no manifest, or the original is of another kind.
    """
    from trueport.artifact import MANIFEST, described, read_manifest
    from trueport.quiet import quiet
    from trueport.verification import original_of

    place = Path(folder)
    if not (place / MANIFEST).is_file():
        raise ArtifactError(
            f"{place} holds no {MANIFEST}, which says how it was exported",
            "Give a folder that Trueport wrote; `trueport verify` judges any.",
        )
    manifest = read_manifest(place)
    for key, kind, option in (("quantize", "quantised", "--quantize"), ("optimized", "fused", "--optimize")):
        if manifest.get(key):
            raise TrueportError(
                f"A {kind} artefact is not what torch.export captured, operation by operation",
                f"Export without {option} to look for a fault, and judge this one by trueport verify.",
            )
    for name, entry in manifest["components"].items():
        described(place, name, entry)
    original = original_of(against, manifest, trust_remote_code)
    found: list[Divergence] = []
    names: list[str] = []
    with quiet():
        for target, entries in _by_target(manifest).items():
            part = {**manifest, "components": entries}
            names += entries
            found += _compare(target, place, part, original)
        if not found:
            found += _captured(place, manifest, original)
    return Comparison(tuple(found), tuple(dict.fromkeys([*names, *(each.component for each in found)])))


def _by_target(manifest: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    targets: dict[str, dict[str, Any]] = {}
    for name, entry in manifest["components"].items():
        targets.setdefault(str(entry.get("target")), {})[name] = entry
    return targets


def _compare(target: str, folder: Path, manifest: Mapping[str, Any], original: Any) -> list[Divergence]:
    if target == "onnx":
        from trueport.diagnosis.divergence.onnx_walk import compare_graphs

        return compare_graphs(folder, manifest, original)
    if target == "executorch":
        from trueport.diagnosis.divergence.program_walk import compare_programs

        return compare_programs(folder, manifest, original)
    raise TrueportError(f"Trueport cannot walk the programs of {target}", "It walks onnx and executorch.")


def _captured(folder: Path, manifest: dict[str, Any], original: Any) -> list[Divergence]:
    """The artefact against the unpatched original, which its own capture cannot show; the proof's clauses tell."""
    from trueport.diagnosis.divergence.onnx_walk import compare_graphs
    from trueport.verification import judge_own

    proof = judge_own(folder, manifest, original, clauses=CLAUSES, seed=None, progress=lambda clause: None)
    if proof.proven:
        return []
    graphs = _by_target(manifest).get("onnx")
    found = compare_graphs(folder, {**manifest, "components": graphs}, original, lowering=True) if graphs else []
    if found:
        return found
    clause, nan = proof.failures()[0], float("nan")
    patches = tuple(f"captured under the patch {path}" for path in manifest.get("patches") or ())
    return [Divergence(clause.component, CAPTURE, f"{clause.clause}: {clause.reason}", "", Origin(), nan, nan, patches)]
