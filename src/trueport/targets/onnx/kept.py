"""A graph without the checkpoint's weights, as bytes that another process goes on from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import onnx
import onnx_ir as ir

from trueport.interface import Interface
from trueport.targets.onnx.lower import Graph, lower, placed
from trueport.targets.onnx.weights import WeightTensor
from trueport.weights.linked import origins_of

if TYPE_CHECKING:
    from trueport.capture import Captured
    from trueport.roles import Component

LARGEST_INLINE = 64 * 1024 * 1024
"""Bytes of a graph's own constants past which it is not kept."""
ABSENT = "checkpoint"
"""The file that a weight is said to lie in while its graph is kept."""


def lowered(part: Captured | Graph, opset: int) -> Graph:
    """The graph of a component, which an interrupted export may have finished; else it is kept where that is wanted."""
    if isinstance(part, Graph):
        return part
    graph = lower(part, opset=opset)
    if part.keep is not None and (content := to_bytes(graph)) is not None:
        part.keep(content)
    return graph


def to_bytes(graph: Graph) -> bytes | None:
    """The graph, in the place of each weight the parameter that it is; None where that is not all there is to it."""
    tensors = {str(value.name): value.const_value for value in graph.model.graph.initializers.values()}
    weights: dict[int, dict[str, Any]] = {}
    own: list[Any] = []
    for name, tensor in tensors.items():
        if isinstance(tensor, WeightTensor):
            entry = {"parameter": tensor.parameter, "values": []}
            weights.setdefault(id(tensor), entry)["values"].append(name)
        else:
            own.append(tensor)
    # One tensor under two names would come back as two.
    if len({id(tensor) for tensor in own}) < len(own) or sum(t.nbytes for t in own if t) > LARGEST_INLINE:
        return None
    facts = {
        "interface": graph.interface.to_json(), "guards": list(graph.guards),
        "names": sorted(graph.weights), "weights": list(weights.values()),
    }  # fmt: skip
    with _without_weights(graph.model.graph):
        content = ir.to_proto(graph.model).SerializeToString()
    # Whatever does not come back as it was would be other bytes in the artefact.
    again = ir.to_proto(ir.from_proto(onnx.ModelProto.FromString(content))).SerializeToString()
    return json.dumps(facts).encode() + b"\n" + content if again == content else None


@contextmanager
def _without_weights(graph: ir.Graph) -> Iterator[None]:
    """Within, every weight of the checkpoint is a range of a file that is not there."""
    whole = {value: value.const_value for value in graph.initializers.values()}
    try:
        for value, tensor in whole.items():
            if isinstance(tensor, WeightTensor):
                value.const_value = ir.ExternalTensor(
                    ABSENT, 0, tensor.nbytes, tensor.dtype, shape=tensor.shape, name=str(value.name)
                )
        yield
    finally:
        for value, tensor in whole.items():
            value.const_value = tensor


def from_bytes(content: bytes, component: Component) -> Graph | None:
    """The graph with the weights of a component; None where they are not those that it was made with."""
    text, _, proto = content.partition(b"\n")
    facts: Mapping[str, Any] = json.loads(text)
    interface = component.interface.with_outputs(Interface.from_json(facts["interface"]).outputs)
    if interface.to_json() != facts["interface"]:
        return None
    model = ir.from_proto(onnx.ModelProto.FromString(proto))
    origins = {f"inner.{name}": origin for name, origin in origins_of(component.module).items()}
    for entry in facts["weights"]:
        origin = origins.get(entry["parameter"])
        if origin is None:
            return None
        tensor = placed(entry["parameter"], origin)
        for name in entry["values"]:
            value = model.graph.initializers[name]
            before = value.const_value
            if before is None or (before.dtype, before.shape) != (tensor.dtype, tensor.shape):
                return None
            tensor.name = name
            value.const_value = tensor
    if any(isinstance(value.const_value, ir.ExternalTensor) for value in model.graph.initializers.values()):
        return None
    return Graph(
        component.name, component.stem, model, interface, tuple(facts["guards"]), frozenset(facts["names"])
    )  # fmt: skip
