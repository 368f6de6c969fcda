"""ONNX graphs walked beside a fresh export of the original, and that beside what torch.export captured."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch

from trueport.diagnosis.divergence.against import LOWERING, RUNTIME, Divergence
from trueport.diagnosis.divergence.blame import blamed
from trueport.diagnosis.divergence.flow import Alignment, Flow, Origin, align
from trueport.diagnosis.divergence.fresh import Fresh, fresh_graphs
from trueport.diagnosis.divergence.onnx_flow import Opened, flow_of, jittered, traced_name
from trueport.diagnosis.divergence.questions import Arrays, questions
from trueport.diagnosis.divergence.walk import Difference, difference, first_divergence, is_float, noise_floor

if TYPE_CHECKING:
    from trueport.capture import Captured

SEEDS = (0, 1)
"""Of the runs with moved weights that show the noise."""


@dataclass
class Truth:
    """The fresh graph, and the same with its weights moved."""

    flow: Flow
    opened: Opened
    moved: list[Opened]

    def values(self, feeds: Arrays, names: list[str]) -> dict[str, tuple[np.ndarray, float]]:
        """Values with their noise floors."""
        computed = [name for name in names if name in self.opened.names]
        others = [dict(each.values(feeds, computed)) for each in self.moved]
        return {name: (feeds[name], 0.0) for name in names if name in feeds} | {
            name: (value, noise_floor(value, [other[name] for other in others if name in other]))
            for name, value in self.opened.values(feeds, computed)
        }


def compare_graphs(
    folder: Path, manifest: Mapping[str, Any], original: Any, *, lowering: bool = False
) -> list[Divergence]:
    """The first divergence of each component.

    Args:
        folder: the artefact.
        manifest: with the components to compare.
        original: the unpatched model.
        lowering: compare the fresh export with what torch.export captured, and not the artefact with the fresh export.
    """
    from trueport.graphs.loading import check
    from trueport.targets.onnx.session import OnnxSession

    entries = manifest["components"]
    for entry in entries.values():
        check(folder / entry["file"])
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary)
        fresh = fresh_graphs(original, manifest, place, opset=_opset(folder / next(iter(entries.values()))["file"]))
        sessions = {name: OnnxSession(path, fresh.graphs[name].interface) for name, path in fresh.paths.items()}
        asked = questions(sessions, manifest, getattr(original, "config", None))
        feeds = {name: [each for each, _ in entries] for name, entries in asked.items()}
        found = []
        for label, entry in entries.items():
            name = label.rpartition("/")[2]
            moved = [Opened(jittered(fresh.paths[name], place / f"{name}.{seed}", seed)) for seed in SEEDS]
            truth = Truth(flow_of(ir.load(fresh.paths[name])), Opened(fresh.paths[name]), moved)
            path = folder / entry["file"]
            if lowering:
                divergence = _lowering(label, fresh, name, truth, feeds[name])
            else:
                divergence = _artefact(label, path, truth, feeds[name], sessions[name])
            if divergence is not None:
                found.append(divergence)
        return found


def _opset(path: Path) -> int | None:
    import onnx

    imports = onnx.load(path, load_external_data=False).opset_import
    return next((entry.version for entry in imports if entry.domain in ("", "ai.onnx")), None)


def _artefact(label: str, path: Path, truth: Truth, asked: list[Arrays], right: Any) -> Divergence | None:
    suspect, opened = flow_of(ir.load(path)), Opened(path)
    feeds = _worst(opened, truth, asked)
    if feeds is None:
        return _optimised(label, path, truth, asked, right)
    alignment = align(suspect, truth.flow)
    truths = truth.values(feeds, sorted(set(alignment.meant.values())))
    differences = {}
    for name, value in opened.values(feeds):
        if alignment.meant.get(name) in truths:
            differences[name] = difference(value, *truths[alignment.meant[name]])
    return blamed(label, suspect, truth.flow, alignment, differences, _shapes(feeds))


def _worst(opened: Opened, truth: Truth, asked: list[Arrays]) -> Arrays | None:
    """The question on which the outputs are furthest from the truth; None where they agree on all."""
    worst, shown = Difference(0.0, 0.0), None
    names = list(truth.flow.outputs)
    for feeds in asked:
        truths = truth.values(feeds, names)
        for name, value in opened.values(feeds, names):
            gap = difference(value, *truths[name])
            if gap.beyond and (shown is None or gap.ratio > worst.ratio):
                worst, shown = gap, feeds
    return shown


def _optimised(label: str, path: Path, truth: Truth, asked: list[Arrays], right: Any) -> Divergence | None:
    """The graph as users run it: its fused kernels may differ where every operation alone agrees."""
    from trueport.targets.onnx.session import OnnxSession

    session = OnnxSession(path, right.interface)
    for feeds in asked:
        truths = truth.values(feeds, list(truth.flow.outputs))
        for name, value in session.run(feeds).items():
            gap = difference(value, *truths[name])
            if gap.beyond:
                words = f"the output {name} differs as ONNX Runtime optimises the graph"
                return Divergence(label, RUNTIME, words, "", Origin(), gap.error, gap.budget, (), _shapes(feeds))
    return None


def _lowering(label: str, fresh: Fresh, name: str, truth: Truth, asked: list[Arrays]) -> Divergence | None:
    """The fresh graph beside the captured program, run by torch: results that keep their name are compared."""
    graph, captured = fresh.graphs[name], fresh.captured[name]
    names = {node.outputs[0].name or "": traced_name(node) for node in graph.model.graph if traced_name(node)}
    flow = truth.flow
    for feeds in filter(_every_row_sees, asked):
        traced = run_captured(captured, feeds)
        outputs = dict(zip(flow.outputs, traced["output"], strict=True))
        wanted = {mine: traced[theirs] for mine, theirs in names.items() if theirs in traced} | outputs
        truths = truth.values(feeds, list(wanted))
        gaps = {mine: difference(value, _array(wanted[mine]), floor) for mine, (value, floor) in truths.items()}
        rest = [mine for mine in truth.opened.names if mine not in wanted]
        # Sizes and positions have no name in the program: only numbers with a fraction are held against it.
        gaps |= {m: Difference(0.0, 0.0) for m, v in truth.opened.values(feeds, rest) if not is_float(v)}
        alignment = Alignment({}, {mine: mine for mine in wanted})
        found = first_divergence(flow, alignment, gaps) if any(gaps[o].beyond for o in outputs if o in gaps) else None
        if found is not None:
            operation, _, gap = found
            return Divergence(
                label, LOWERING, operation.name, operation.kind, operation.origin, gap.error, gap.budget,
                (gap.words,) if gap.words else (), _shapes(feeds),
            )  # fmt: skip
    return None


def _every_row_sees(feeds: Arrays) -> bool:
    """Whether every query sees a key: kernels are free in what they give for one that sees none."""
    masks = [array for name, array in feeds.items() if name.endswith("attention_mask")]
    return all(mask[:, 0].all() for mask in masks)


def run_captured(captured: Captured, feeds: Arrays) -> dict[str, Any]:
    """Every tensor of the captured program by name, and all outputs under ``output``."""
    from trueport.dtypes import tensor_of

    values: dict[str, Any] = {}

    class Noting(torch.fx.Interpreter):
        def run_node(self, node: torch.fx.Node) -> Any:
            result = super().run_node(node)
            if isinstance(result, torch.Tensor) or node.op == "output":
                values[node.name] = result.detach().clone() if isinstance(result, torch.Tensor) else result
            return result

    module = captured.program.module(check_guards=False)
    for node in reversed(list(module.graph.nodes)):
        if "_assert" in str(node.target):  # what torch promises of sizes, and not what it computes
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    args = [tensor_of(feeds[tensor.name]) for tensor in captured.interface.inputs]
    with torch.no_grad():
        Noting(module).run(*args)
    values["output"] = list(torch.utils._pytree.tree_leaves(values["output"]))
    return values


def _array(tensor: torch.Tensor) -> np.ndarray:
    from trueport.dtypes import array_of

    return array_of(tensor.detach())


def _shapes(feeds: Arrays) -> str:
    return ", ".join(f"{name} {tuple(array.shape)}" for name, array in feeds.items() if array.size)
