"""The repair of one file: audit, mend layer by layer, write beside the place, prove, move there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from trueport.artifact import beside
from trueport.errors import ArtifactError, ProofError, TrueportError
from trueport.graphs.audit import Report, audit
from trueport.graphs.audit.report import Finding
from trueport.graphs.audit.run import explained
from trueport.graphs.links import files, outside, spare
from trueport.interrupts import held
from trueport.words import count_words, number

if TYPE_CHECKING:
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View
    from trueport.graphs.repair.probe import Probe
    from trueport.graphs.repair.prove import RepairProof

POLICIES = ("uniform", "zeros")
"""What a row that sees no key gives after a repair: as lowest-float fills have it, or as torch's sdpa has it."""
TAKEN_BACK = "the graph shows what its masks seem to hide: another term, or the softmax, takes it back"
"""Why a layer is left that the proof found to mean something else than its terms say."""
PRECISIONS = ("auto", "float32", "float64")


@dataclass(frozen=True)
class Repair:
    """What a repair did.

    Attributes:
        file: the graph that was written.
        rows: the policy of rows that see no key.
        mended: the findings that are gone.
        left: reasons, by node, why others are not.
        after: the audit of the graph that was written.
        proof: None without a repair, or where none was asked for.
    """

    file: str
    rows: str
    mended: tuple[Finding, ...]
    left: dict[str, str] = field(default_factory=dict)
    after: Report | None = None
    proof: RepairProof | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        from dataclasses import asdict

        return {
            "schema_version": 1,
            "file": self.file,
            "rows": self.rows,
            "mended": [asdict(finding) for finding in self.mended],
            "left": self.left,
            "after": None if self.after is None else self.after.to_json(),
            "proof": None if self.proof is None else self.proof.to_json(),
        }

    def text(self) -> str:
        """What was mended, what was not, and the proof."""
        lines = [f"mended {finding.rule} at {finding.module or finding.node}" for finding in self.mended]
        lines += [f"left {node}: {reason}" for node, reason in self.left.items()]
        if self.after is not None:
            known = {finding.node for finding in self.after.findings if finding.node in self.left}
            kept = (f for f in self.after.findings if f.severity != "note" and f.node not in known)
            lines += [f"not mended: {finding.line()}" for finding in kept]
        if self.proof is not None:
            lines.append(self.proof.text())
        total = f"{self.file}: {count_words(len(self.mended), 'finding')} mended"
        remaining = 0 if self.after is None else len(self.after.errors)
        return "\n".join([*lines, f"{total}, {count_words(remaining, 'error')} left; empty rows give {self.rows}."])


def repair(
    path: str | Path, out: str | Path, *, rows: str = "uniform", precision: str = "auto", proof: bool = True,
    force: bool = False,
) -> Repair:  # fmt: skip
    """Mend the masks of an ONNX graph.

    Softmax layers get one boolean mask that chooses between the score and the lowest number. ONNX Runtime's Attention,
    QAttention and MultiHeadAttention are written out with the raw mask; QAttention keeps its quantised weights.

    Args:
        path: the graph.
        out: where the mended graph goes, another place than ``path``; a graph without repairable findings is copied.
        rows: what a query gives that sees no key: ``uniform`` (the mean of all values) or ``zeros``.
        precision: scores in ``float32`` or ``float64``; ``auto`` takes float64 where the weights' norms say that float32
            would cost more than 1e-5.
        proof: whether to prove the result; without one nothing but the audit vouches for it.
        force: whether ``out`` may be replaced.

    Raises:
        GraphError: the file is no graph that can be opened.
        ArtifactError: ``out`` cannot be written, or is one of the files that the graph reads.
        ProofError: a row differs from the reference, or right outputs moved; nothing is written.
    """
    path, out = Path(path), Path(out)
    _check_options(path, out, rows, precision, force)
    before = audit(path)
    spare(places(out), files(path))
    left: dict[str, str] = {}
    try:
        while (done := _attempt(path, out, before, rows, precision, proof, left)) is None:
            pass
    except OSError as error:
        raise ArtifactError(f"{out} cannot be written: {error.strerror or error}", "Give another place.") from error
    after, found = done
    remaining = {(finding.rule, finding.node) for finding in after.findings}
    mended = tuple(f for f in before.findings if f.repairable and (f.rule, f.node) not in remaining)
    return Repair(out.name, rows, mended, left, after, found)


def _attempt(
    path: Path, out: Path, before: Report, rows: str, precision: str, proof: bool, left: dict[str, str]
) -> tuple[Report, RepairProof | None] | None:
    """Mend, prove and write; None, and nothing is written, where layers were found that have to stay as they are.

    Args:
        left: those, and why; what else is found to be left is noted there.

    Raises:
        ProofError: the proof fails for another reason, or there is no other layer to mend.
    """
    from trueport.graphs.audit.view import View

    with explained(path):
        view = View.open(path)
        probes = _mend(view, before, rows, precision, left)
    with beside(out) as staging:
        found = _write(view, probes, path, staging / out.name, rows, proof)
        misread = {layer.node for layer in found.layers if layer.taken_back} if found is not None else set()
        if misread - left.keys() and any(probe.name not in misread for probe in probes):
            left.update(dict.fromkeys(misread, TAKEN_BACK))
            return None
        after = audit(staging / out.name)
        if found is not None and not found.proven:
            further = "" if found.rounded is None else _too_large(found.rounded)
            raise ProofError(f"The repair of {path.name} failed. {found.text()[:-1]}", f"Nothing was written.{further}")
        with held():
            _put_in_place(sorted(staging.iterdir(), reverse=True), out)
    return after, found


def _too_large(score: float) -> str:
    return f" Scores reach {number(score)}, which float32 rounds: --precision float64 does not."


def _put_in_place(written: Sequence[Path], out: Path) -> None:
    """Weights first; meanwhile there is no graph, as an earlier one would read them for its own."""
    if len(written) > 1:
        out.unlink(missing_ok=True)
    for file in written:
        os.replace(file, out.parent / file.name)


def places(out: Path) -> list[Path]:
    """The files that a repair writes: the graph, and its weights where they lie beside it."""
    return [out, out.with_name(f"{out.name}_data")]


def _check_options(path: Path, out: Path, rows: str, precision: str, force: bool) -> None:
    if rows not in POLICIES:
        raise TrueportError(f"{rows} is no policy for rows that see no key", f"There are {', '.join(POLICIES)}.")
    if precision not in PRECISIONS:
        raise TrueportError(f"{precision} is no precision", f"There are {', '.join(PRECISIONS)}.")
    if not out.absolute().parent.is_dir() or any(map(Path.is_dir, places(out))):
        raise ArtifactError(f"{out} cannot be written", "Give a file in a folder that exists.")
    if out.exists() and path.exists() and out.samefile(path):
        raise ArtifactError(f"{out} is the graph itself", "Give another place.")
    for place in places(out):
        if place.exists() and not force:
            raise ArtifactError(f"{place} exists", "Give --force to replace it.")


def _mend(view: View, report: Report, rows: str, precision: str, left: dict[str, str]) -> list[Probe]:
    """Mend every layer with a repairable finding; what the proof looks at.

    Args:
        left: layers that stay as they are, and why, by the node's name; those that cannot be mended are added.
    """
    from trueport.graphs.repair.operators import mend_operator
    from trueport.graphs.repair.terms import mend_softmax

    wanted = {finding.node for finding in report.findings if finding.repairable}
    sites = [site for site in view.sites if _touched(view, site, wanted)]
    probes: list[Probe] = []
    for site in sites:
        name = site.node.name or site.node.outputs[0].name or site.node.op_type
        if name in left:
            continue
        if site.node.graph is not view.model.graph:
            left[name] = "it lies in the branch of an If or the body of a Loop"
            continue
        done = mend_operator(view, site, rows, precision) if site.fused else mend_softmax(view, site, rows)
        if isinstance(done, str):
            left[name] = done
        else:
            probes.append(done)
    return probes


def _touched(view: View, site: Site, wanted: set[str]) -> bool:
    """Whether a finding is about this layer: about its node, or about a node that makes its mask."""
    nodes = [site.node, *view.backwards(term.value for term in site.terms)]
    return any((node.name or node.outputs[0].name or node.op_type) in wanted for node in nodes)


def _write(
    view: View, probes: Sequence[Probe], original: Path, place: Path, rows: str, proof: bool
) -> RepairProof | None:
    """The mended graph at ``place``, and its proof."""
    from onnx_ir.passes import common as passes

    from trueport.graphs.repair.prove import prove

    model = view.model
    probing = place.parent / "probing"
    if probes and proof:
        probing.mkdir()
        _save(view, original, probing / place.name, _watched(model, probes))
    if probes:
        passes.RemoveUnusedNodesPass()(model)
        passes.RemoveUnusedOpsetsPass()(model)
    _save(view, original, place, [])
    if not probes or not proof:
        return None
    try:
        return prove(view, probes, original, place, probing / place.name, rows)
    finally:
        shutil.rmtree(probing, ignore_errors=True)


def _watched(model: ir.Model, probes: Sequence[Probe]) -> list[ir.Value]:
    """The values that the proof reads, those left out that are inputs, stored or given out anyway."""
    values = {value.name: value for node in model.graph for value in node.outputs}
    known = {value.name for value in model.graph.outputs}
    names = dict.fromkeys(name for probe in probes for name in probe.watched)
    return [values[name] for name in names if name in values and name not in known]


def _save(view: View, original: Path, place: Path, further: list[ir.Value]) -> None:
    """Write the graph, with further outputs; its weights beside it where the original's are."""
    model = view.model
    count = len(model.graph.outputs)
    model.graph.outputs.extend(further)
    try:
        ir.save(model, place, external_data=f"{place.name}_data" if outside(model) else None)
    finally:
        del model.graph.outputs[count:]
