"""The proof of a repair: random masks of every family, every row of every repaired layer against the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trueport.errors import RunError
from trueport.graphs.audit.experiment.inputs import runs
from trueport.graphs.audit.experiment.known import MISFITS
from trueport.graphs.repair.expected import expected
from trueport.graphs.repair.families import FAMILIES, feeds, folds, padding_of
from trueport.graphs.repair.probe import Probe
from trueport.graphs.repair.standard import is_standard
from trueport.graphs.repair.taken_back import hides_whole_rows, taken_back
from trueport.words import count_words, number

if TYPE_CHECKING:
    from trueport.graphs.audit.view import View
    from trueport.targets.onnx.session import OnnxSession

RELATIVE = 1e-5
"""How far a row may be from the reference, relative to its own largest entry."""
EXACT_TO = 8.0
"""Largest score up to which float32 holds ``RELATIVE``; past it the allowance grows with the score."""
MOST_ALLOWED = 0.01
"""Where the growth ends: beyond scores of 8,000 a row that is further off is wrong, whatever rounded it."""
MOST_MOVED = 0.1
"""How far outputs may move, relative to their largest entry, where every layer was right before."""
HALF = 4e-3
"""The same for float16: four of its unit roundoffs."""
ROUNDS = 8
"""Masks of each family."""
SEED = 0


@dataclass(frozen=True)
class Layer:
    """What the proof saw of one repaired layer.

    Attributes:
        node, module: the node that was replaced.
        rows: rows compared, over all masks.
        wrong_before, wrong_after: rows further from the reference than allowed.
        error_before, error_after: the largest error, relative to the row's largest entry; inf for NaN.
        allowed: the largest allowance.
        score: the largest score met.
        taken_back: whether the layer, as it was, showed keys that its masks seem to hide.
    """

    node: str
    module: str
    rows: int
    wrong_before: int
    wrong_after: int
    error_before: float
    error_after: float
    allowed: float
    score: float
    taken_back: bool = False


@dataclass(frozen=True)
class RepairProof:
    """The proof of a repaired graph.

    Attributes:
        proven: whether no row is wrong, and outputs that were right are unchanged.
        masks: how many masks were drawn.
        layers: each repaired layer.
        unchanged: the largest change of the graph's outputs on inputs where every layer was right before, relative to
            the output's largest entry; None where no mask left all of them right.
    """

    proven: bool
    masks: int
    layers: tuple[Layer, ...]
    unchanged: float | None

    def text(self) -> str:
        """One sentence."""
        rows = sum(layer.rows for layer in self.layers)
        before = sum(layer.wrong_before for layer in self.layers)
        after = sum(layer.wrong_after for layer in self.layers)
        worst = max((layer.error_after for layer in self.layers), default=0.0)
        kept = "" if self.unchanged is None else f"; where all was right, outputs move by {number(self.unchanged)}"
        return (
            f"{'Proven' if self.proven else 'Not proven'} over {count_words(self.masks, 'mask')} of "
            f"{len(FAMILIES)} families: of {rows:,} rows {before:,} were wrong and {after:,} are; the worst lies "
            f"{number(worst)} from the reference{kept}.{self._misread()}"
        )

    def _misread(self) -> str:
        names = ", ".join(layer.module or layer.node for layer in self.layers if layer.taken_back)
        return (
            names
            and f" What the masks of {names} seem to hide, the graph shows: another term, or the softmax, takes them back."
        )

    @property
    def rounded(self) -> float | None:
        """The largest score of a layer with wrong rows whose allowance ended; None without one."""
        scores = (layer.score for layer in self.layers if layer.wrong_after and layer.allowed >= MOST_ALLOWED)
        return max(scores, default=None)

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinities as null."""
        content = asdict(self)
        for layer in content["layers"]:
            layer.update({k: None for k, v in layer.items() if isinstance(v, float) and not np.isfinite(v)})
        return content


def prove(view: View, probes: Sequence[Probe], original: Path, fixed: Path, probing: Path, rows: str) -> RepairProof:
    """Run both graphs on inputs under masks of all families.

    Args:
        view: the repaired graph.
        probes: its repaired layers.
        original, fixed: the graphs on disk.
        probing: the repaired graph, with everything that the probes watch as further outputs.
        rows: the policy of rows that see no key.

    Raises:
        ArtifactError, RunError: ONNX Runtime refuses a graph, or the inputs that were made for it.
    """
    from trueport.targets.onnx.session import OnnxSession

    before, after, inner = (OnnxSession(path) for path in (original, fixed, probing))
    lone = [_Lone(probe) for probe in probes]
    seen: list[list[_Compared]] = [[] for _ in probes]
    moved: list[float] = []
    gates: set[str] = set()
    masks = 0
    stored = _stored(view, probes)
    folded = _folded(view, before)
    for length, past in (group[0] for group in runs(view)):
        for _, inputs in feeds(view, seed=SEED + past, rounds=ROUNDS, length=length, past=past, folded=folded):
            masks += 1
            values = {**stored, **inputs, **inner.run(inputs)}
            with np.errstate(all="ignore"):  # what overflows is infinite, and counted as wrong
                found = [_compare(probe, model, values, rows) for probe, model in zip(probes, lone, strict=True)]
            mask = padding_of(view, inputs)
            gates |= {p.name for p in probes if hides_whole_rows(p, values, mask, past)}
            for one, compared in zip(seen, found, strict=True):
                one.append(compared)
            if all((one.before <= one.allowed).all() and not one.loose for one in found):
                old = before.run(inputs)
                if not any(np.isnan(array).any() for array in old.values() if array.dtype.kind == "f"):
                    moved.append(_moved(old, after.run(inputs)))
    layers = tuple(_layer(p, compared, p.name in gates) for p, compared in zip(probes, seen, strict=True))
    allowed = max((layer.allowed for layer in layers), default=RELATIVE)
    unchanged = max(moved, default=None)
    still = unchanged is None or unchanged <= min(100 * allowed, MOST_MOVED)
    right = not any(layer.wrong_after or layer.taken_back for layer in layers) and still
    return RepairProof(bool(right), masks, layers, unchanged)


def _stored(view: View, probes: Sequence[Probe]) -> dict[str, np.ndarray]:
    """What the probes watch and the graph stores: a causal mask of one length."""
    names = {name for probe in probes for name in probe.watched}
    return {
        name: array
        for name, value in view.model.graph.initializers.items()
        if name in names and (array := view.array(value)) is not None
    }


def _folded(view: View, session: OnnxSession) -> int:
    """The number of heads in the batch axis with which the graph runs; 1 where none makes it run."""
    length, past = runs(view)[0][0]
    for count in folds(view):
        try:
            session.run(next(feeds(view, seed=SEED, rounds=1, length=length, past=past, folded=count))[1])
        except RunError:
            continue
        return count
    return 1


@dataclass(frozen=True)
class _Compared:
    """Errors of every row of one run, relative to the row.

    Attributes:
        loose: whether a query sees no key in float16. What it gave is not known: ONNX Runtime adds masks in float32 there,
            if nothing reads the sum, and the scores show again that float16 rounds away.
    """

    before: np.ndarray
    after: np.ndarray
    allowed: float
    score: float
    loose: bool
    taken_back: bool


def _compare(probe: Probe, lone: _Lone, values: Mapping[str, np.ndarray], rows: str) -> _Compared:
    try:
        wanted, score, empty = expected(probe, values, rows)
    except MISFITS as error:
        raise RunError(
            f"{probe.name}: the inputs that were made up for the proof do not fit each other",
            "Name the axes of its inputs alike where they are alike, or give --no-proof.",
        ) from error
    got = values[probe.output]
    exact = probe.double or probe.original.op_type == "Softmax"
    allowed = RELATIVE if exact else min(RELATIVE * max(1.0, score / EXACT_TO), MOST_ALLOWED)
    if got.dtype == np.float16:
        allowed = max(allowed, HALF)
    loose = empty and got.dtype == np.float16
    return _Compared(
        _errors(lone.run(values), wanted), _errors(got, wanted), allowed, score, loose, taken_back(probe, values)
    )


def _errors(got: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The largest error of each row, relative to its largest entry; of rows of zeros to the tensor's."""
    size = np.abs(wanted).max(axis=-1)
    size = np.where(size > 0, size, max(float(size.max(initial=0.0)), 1e-30))
    error = np.abs(got.astype(np.float64) - wanted).max(axis=-1) / size
    return np.asarray(np.where(np.isnan(error), np.inf, error))


class _Lone:
    """A layer's original node as a graph of its own."""

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.node = probe.original
        self.session: Any = None

    def run(self, values: Mapping[str, np.ndarray]) -> np.ndarray:
        """Its first output on these inputs.

        Raises:
            RunError: the runtime refuses the node.
        """
        named = {name: index for index, name in enumerate(self.probe.inputs) if name}
        arrays = {name: np.asarray(self.probe.constants.get(i, values.get(name))) for name, i in named.items()}
        output = self.node.outputs[0].name or ""
        try:
            if self.session is None:
                self.session = self._open(arrays, output)
            return np.asarray(self.session.run([output], arrays)[0])
        except Exception as error:
            reason = " ".join(str(error).split())
            raise RunError(f"{self.probe.name}, as it is, does not run: {reason[:400]}") from error

    def _open(self, arrays: Mapping[str, np.ndarray], output: str) -> Any:
        import onnx
        import onnxruntime

        taken = [
            onnx.helper.make_tensor_value_info(
                name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), [None] * array.ndim
            )
            for name, array in arrays.items()
        ]
        given = [onnx.helper.make_empty_tensor_value_info(output)]
        graph = onnx.helper.make_graph([ir.to_proto(self.node)], "original", taken, given)
        opset = 23 if is_standard(self.node) else 18
        imports = [onnx.helper.make_opsetid("", opset), onnx.helper.make_opsetid("com.microsoft", 1)]
        whole = onnx.helper.make_model(graph, opset_imports=imports, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(whole.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _moved(before: Mapping[str, np.ndarray], after: Mapping[str, np.ndarray]) -> float:
    """The largest change of any output, relative to its largest entry."""
    changes = [0.0]
    for name, old in before.items():
        if old.size and old.dtype.kind == "f":
            size = max(float(np.abs(old).max()), 1e-30)
            change = float(np.abs(after[name].astype(np.float64) - old).max()) / size
            changes.append(change if np.isfinite(change) else np.inf)
    return max(changes)


def _layer(probe: Probe, runs: Sequence[_Compared], gated: bool) -> Layer:
    return Layer(
        probe.name,
        probe.module,
        rows=sum(run.after.size for run in runs),
        wrong_before=sum(int((run.before > run.allowed).sum()) for run in runs),
        wrong_after=sum(int((run.after > run.allowed).sum()) for run in runs),
        error_before=max((float(run.before.max(initial=0.0)) for run in runs), default=0.0),
        error_after=max((float(run.after.max(initial=0.0)) for run in runs), default=0.0),
        allowed=max((run.allowed for run in runs), default=RELATIVE),
        score=max((run.score for run in runs), default=0.0),
        taken_back=gated or any(run.taken_back for run in runs),
    )
