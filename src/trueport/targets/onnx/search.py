"""``--quantize auto``: the fewest bytes with which the gate holds.

All layers begin in 4 bits. What costs the most divergence for each byte that it saves goes to 8 bits first; where the
gate does not hold with all layers in 8 bits, it goes on to float in the same way. The gate is that of the forms that
are there: without a layer in 4 bits, that of 8. How much a layer costs is measured one layer at a time, how far to go by
bisection, with the very graphs that would be written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from trueport.proof.calibration import SEED, Original
from trueport.proof.clauses.quality import ask, distributions
from trueport.proof.inputs import Batch
from trueport.proof.quantised import Quantised
from trueport.proof.result import Case
from trueport.proof.run import asked_of
from trueport.proof.subject import Subject, subject_of
from trueport.targets.onnx.blocks import Blocks, restored, row_bytes
from trueport.targets.onnx.layers import layers_of
from trueport.targets.onnx.quantize import FLOAT, Place, Weight, bits_and_size, blocks_of, quantise
from trueport.targets.onnx.session import from_numpy
from trueport.targets.onnx.trial import TrialSession, opened, opened_up, opening

if TYPE_CHECKING:
    from trueport.proof.asked import Asked
    from trueport.targets.onnx.lower import Graph
    from trueport.targets.quantized import Gate

TIMES = 4
"""How many times as many drawn positions as a proof's a plan is asked at."""
ROOM = 2.0
"""Standard errors of what a proof measures that a plan keeps from the gate: the proof's inputs are others."""
POSITIONS = 48
"""Real positions at which the cost of one layer is measured."""
PROMPTS = 16
"""Given prompts that the gate asks at the most, each time that it is asked."""
REMEMBERED = 2**30
"""Bytes of the float graphs' answers that are kept."""
Forms = dict[Place, str]


class Remembered:
    """The float graphs, which are asked the same again and again."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        self._answers: dict[tuple[bytes, ...], dict[str, np.ndarray]] = {}
        self._held = 0

    def forward(self, batch: Batch) -> dict[str, np.ndarray]:
        """Outputs by name, float64."""
        parts = (batch.ids, batch.mask, batch.target, batch.types)
        key = tuple(b"" if part is None else part.tobytes() + str(part.shape).encode() for part in parts)
        found = self._answers.get(key)
        if found is None:
            found = dict(self.subject.forward(batch))
            size = sum(value.nbytes for value in found.values())
            if self._held + size <= REMEMBERED:
                self._answers[key], self._held = found, self._held + size
        return {name: value.astype(np.float64) for name, value in found.items()}


@dataclass(frozen=True)
class Way:
    """How weights are rounded, as ``quantise`` takes it."""

    block_size: int | None = None
    rounded: Mapping[Weight, Blocks] = field(default_factory=dict)


def searched(graphs: Sequence[Graph], original: Original, gates: Mapping[str, Gate], way: Way | None = None) -> Forms:
    """The form of each layer, all in float where nothing else holds the gate of its forms."""
    way = way or Way()
    with opened(graphs, opened_up) as sessions:
        own = Remembered(subject_of(original.role, sessions))
        asked = asked_of(sessions, original.role, original.config, None, None, "float32", 1, seed=SEED)
        quantised = Quantised("auto", 1, gates["int4"], original.prompts[:PROMPTS])
        asked = replace(asked, own=own, exact=own, quantised=quantised)  # type: ignore[arg-type]
        layers = {(graph.name, layer.path): layer for graph in graphs for layer in layers_of(graph)[0]}
        four, eight = dict.fromkeys(layers, "int4"), dict.fromkeys(layers, "int8")
        if _holds(graphs, asked, four, way):
            return four
        roomy = _holds(graphs, asked, eight, way)
        if roomy:
            order = _cheapest(graphs, sessions, asked, ("int4", "int8"), way)
            found = _fewest(graphs, asked, four, order, "int8", way)
            if found != eight:
                return found
        asked = replace(asked, quantised=replace(quantised, gate=gates["int8"]))
        if roomy and _holds(graphs, asked, eight, way):
            return eight
        order = _cheapest(graphs, sessions, asked, ("int8", FLOAT), way)
        return _fewest(graphs, asked, eight, order, FLOAT, way)


def _fewest(graphs: Sequence[Graph], asked: Asked, forms: Forms, order: Sequence[Place], after: str, way: Way) -> Forms:
    """``forms`` with the shortest beginning of ``order`` in the form ``after`` with which the gate holds.

    By bisection, as if more of ``order`` were never worse; what comes out was tried, or is the whole.
    """
    low, high = 0, len(order)
    while high - low > 1:
        middle = (low + high) // 2
        if _holds(graphs, asked, forms | dict.fromkeys(order[:middle], after), way):
            high = middle
        else:
            low = middle
    return forms | dict.fromkeys(order[:high], after)


def _holds(graphs: Sequence[Graph], asked: Asked, forms: Mapping[Place, str], way: Way) -> bool:
    """Whether graphs in these forms keep from the gate as far as a proof on other inputs may come out worse."""

    def change(graph: Graph) -> Graph:
        quantise(graph, forms.__getitem__, block_size=way.block_size, rounded=way.rounded)
        return graph

    if all(form == FLOAT for form in forms.values()):
        return True
    with opened(graphs, change) as sessions:
        cases = ask(replace(asked, subject=subject_of(asked.role, sessions)), TIMES)
    return not any(case.failed or (case.error or 0.0) + ROOM * case.spread > case.budget for case in cases)


def _cheapest(
    graphs: Sequence[Graph],
    sessions: Mapping[str, TrialSession],
    asked: Asked,
    forms: tuple[str, str],
    way: Way,
) -> list[Place]:
    """Every layer, first the one that saves the most divergence for each byte that the second form needs more."""
    worth: dict[Place, float] = {}
    asked = replace(asked, subject=subject_of(asked.role, sessions))
    for graph in graphs:
        session = sessions[graph.name]
        for index, layer in enumerate(layers_of(graph)[0]):
            outputs, width = layer.matrix().shape
            costs, sizes = list[float](), list[float]()
            for form in forms:
                sizes.append(outputs * _bytes(form, width, way.block_size))
                if form == FLOAT:
                    costs.append(0.0)
                    continue
                changed = np.ascontiguousarray(
                    restored(blocks_of(graph.name, layer, form, way.block_size, way.rounded)).T
                )
                session.weights = {opening(index): from_numpy(changed)}
                costs.append(max(case.error or 0.0 for case in _spread(asked)))
            session.weights = {}
            worth[graph.name, layer.path] = (costs[0] - costs[1]) / (sizes[1] - sizes[0])
    return sorted(worth, key=lambda place: -worth[place])


def _spread(asked: Asked) -> list[Case]:
    """The divergences or distances alone: agreement hardly moves for one layer."""
    return [case for case in distributions(asked, POSITIONS, POSITIONS) if "disagreement" not in case.case]


def _bytes(form: str, width: int, block_size: int | None) -> float:
    """Of a row of weights, with its scales."""
    return 4.0 * width if form == FLOAT else row_bytes(width, *bits_and_size(form, width, block_size))
