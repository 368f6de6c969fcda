"""Variants of an artefact's graphs, run before one of them is written."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trueport.interface import Tensor
from trueport.proof.calibration import Original, answered, batches
from trueport.proof.subject import subject_of
from trueport.targets.onnx.layers import Layer, layers_of
from trueport.targets.onnx.lower import Graph
from trueport.targets.onnx.quantize import Place, Range, constant
from trueport.targets.onnx.session import OnnxSession
from trueport.targets.onnx.state import Buffers
from trueport.targets.onnx.weights import save


class TrialSession(OnnxSession):
    """A graph that can be given other weights, and whose activations can be watched.

    Attributes:
        weights: OrtValues by initializer, in place of the graph's own, where ``opened_up`` made them replaceable.
        watch: is told of every output of every run, by name.
    """

    weights: Mapping[str, Any] = {}
    watch: Callable[[str, np.ndarray], None] | None = None

    def _execute(
        self, values: dict[str, Any], feeds: Mapping[str, Any], buffers: Buffers | None = None
    ) -> dict[str, Any]:
        results = super()._execute({**values, **self.weights}, feeds, buffers)
        for name, value in results.items() if self.watch is not None else ():
            assert self.watch is not None
            self.watch(name, value.numpy())
        return results


@contextmanager
def opened(graphs: Sequence[Graph], change: Callable[[Graph], Graph]) -> Iterator[dict[str, TrialSession]]:
    """Sessions of changed copies of the graphs, by component; the copies are written to a place that vanishes."""
    with tempfile.TemporaryDirectory(prefix="trueport-trial-") as place:
        copies = [change(replace(graph, model=graph.model.clone())) for graph in graphs]
        save(copies, Path(place))
        yield {copy.name: TrialSession(Path(place) / f"{copy.stem}.onnx", copy.interface) for copy in copies}


def opened_up(graph: Graph) -> Graph:
    """The graph with each layer's matrix as an initializer (width, outputs) that a run may replace."""
    for index, layer in enumerate(layers_of(graph)[0]):
        weight = constant(graph, opening(index), np.ascontiguousarray(layer.matrix().T))
        graph.model.graph.inputs.append(weight)  # an initializer that is an input too is a default
        _replace(layer, weight)
    return graph


def opening(index: int) -> str:
    """The name of the replaceable initializer of a graph's layer."""
    return f"trial.{index}"


def _replace(layer: Layer, weight: ir.Value) -> None:
    nodes = [ir.node("MatMul", [layer.node.inputs[0], weight])]
    if layer.bias is not None:
        nodes.append(ir.node("Add", [nodes[0].outputs[0], layer.bias]))
    owner, old, new = layer.node.graph, layer.node.outputs[0], nodes[-1].outputs[0]
    assert owner is not None
    new.type, new.shape = old.type, old.shape
    ir.convenience.replace_nodes_and_values(owner, layer.node, [layer.node], nodes, [old], [new])


def ranges(graphs: Sequence[Graph], original: Original) -> dict[Place, Range]:
    """Smallest and largest activation that each layer meets on the calibration's batches."""
    found: dict[Place, Range] = {}

    def told(place: Place, value: np.ndarray) -> None:
        low, high = found.get(place, (np.inf, -np.inf))
        found[place] = (min(low, float(value.min())), max(high, float(value.max())))

    _watch(graphs, original, lambda place: True, told)
    return found


def moments(graphs: Sequence[Graph], original: Original, wanted: Callable[[Place], bool]) -> dict[Place, np.ndarray]:
    """X^T X, (width, width) float32, of the activations X that each wanted layer meets on the calibration's batches."""
    found: dict[Place, np.ndarray] = {}

    def told(place: Place, value: np.ndarray) -> None:
        if place in found:
            found[place] += value.T @ value
        else:
            found[place] = value.T @ value

    _watch(graphs, original, wanted, told)
    return found


def _watch(
    graphs: Sequence[Graph],
    original: Original,
    wanted: Callable[[Place], bool],
    told: Callable[[Place, np.ndarray], None],
) -> None:
    """Run the calibration's batches, and tell of each wanted layer the activations that it meets, (tokens, width).

    A layer in a body of control flow is out of sight.
    """
    places: dict[tuple[str, str], Place] = {}

    def watched(graph: Graph) -> Graph:
        outputs = []
        for index, layer in enumerate(layers_of(graph)[0]):
            if layer.node.graph is not graph.model.graph or not wanted((graph.name, layer.path)):
                continue
            width = layer.width
            rows = constant(graph, f"{opening(index)}.rows", np.array([-1, width]))
            node = ir.node("Reshape", [layer.node.inputs[0], rows])
            node.outputs[0].name = opening(index)
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
            graph.model.graph.append(node)
            graph.model.graph.outputs.append(node.outputs[0])
            outputs.append(Tensor(opening(index), "float32", ("trial_length", width)))
            places[graph.name, opening(index)] = (graph.name, layer.path)
        interface = graph.interface
        return replace(graph, interface=interface.with_outputs([*interface.outputs, *outputs]))

    with opened(graphs, watched) as sessions:
        subject = subject_of(original.role, sessions)
        given = batches({graph.name: graph.interface for graph in graphs}, original)
        given = answered(given, original, subject.forward)
        for component, session in sessions.items():

            def watch(name: str, value: np.ndarray, component: str = component) -> None:
                if (component, name) in places and value.size:
                    told(places[component, name], value)

            session.watch = watch
        for batch in given:
            subject.forward(batch)
