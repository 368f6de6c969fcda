"""An ONNX graph as a flow, and every value in it by running it."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from trueport.diagnosis.divergence.flow import Flow, Operation, Origin
from trueport.errors import ArtifactError

SHOWN = 8
"""A constant of more elements is told by its shape."""
AT_ONCE = 64
"""Values fetched in one run."""


def flow_of(model: ir.Model) -> Flow:
    """The main graph; what lies in the body of an If, Loop or Scan belongs to that one operation."""
    graph = model.graph
    operations = []
    for index, node in enumerate(graph):
        inputs = tuple(value.name or "" if value is not None else "" for value in node.inputs)
        attributes = {name: _attribute(attribute) for name, attribute in node.attributes.items()}
        operations.append(
            Operation(
                node.name or f"{node.op_type}_{index}",
                node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}::{node.op_type}",
                (*inputs, *dict.fromkeys(_captured(node))),
                tuple(value.name or "" for value in node.outputs),
                attributes,
                _origin(node),
            )
        )
    arrays = {name: value.const_value for name, value in graph.initializers.items() if value.const_value is not None}
    return Flow(
        tuple(operations),
        tuple(value.name or "" for value in graph.inputs if value.name not in arrays),
        tuple(value.name or "" for value in graph.outputs),
        {name: _digest(tensor) for name, tensor in arrays.items()},
        {name: _words(tensor) for name, tensor in arrays.items()},
    )


def _attribute(attribute: ir.Attr) -> Any:
    value: Any = attribute.value
    if attribute.type == ir.AttributeType.TENSOR:
        return f"{_words(value)} {_digest(value)[:12]}"
    if attribute.type == ir.AttributeType.GRAPH:
        return _body(value)
    if attribute.type == ir.AttributeType.GRAPHS:
        return [_body(each) for each in value]
    return list(value) if isinstance(value, (tuple, list)) else value


def _body(graph: ir.Graph) -> list[Any]:
    """A subgraph without the names of its values."""
    constants = [_digest(v.const_value)[:12] for v in graph.initializers.values() if v.const_value is not None]
    return [constants, *((n.op_type, {k: _attribute(a) for k, a in n.attributes.items()}) for n in graph)]


def _captured(node: ir.Node) -> Iterator[str]:
    """Values of the graphs around it that a node's subgraphs read."""
    bodies = [a.value for a in node.attributes.values() if a.type == ir.AttributeType.GRAPH]
    own: set[int] = set()
    for body in bodies:
        own |= {id(value) for value in (*body.inputs, *body.initializers.values())}
        for inner in ir.traversal.RecursiveGraphIterator(body):
            own |= {id(value) for value in inner.outputs}
    for body in bodies:
        for inner in ir.traversal.RecursiveGraphIterator(body):
            for value in inner.inputs:
                if value is not None and id(value) not in own and value.name:
                    yield value.name


def _digest(tensor: ir.TensorProtocol) -> str:
    # A float written with another sign of zero is the same constant.
    head = f"{tensor.dtype} {tuple(tensor.shape.numpy())}".encode()
    return hashlib.sha256(head + tensor.tobytes()).hexdigest()


def _words(tensor: ir.TensorProtocol) -> str:
    if tensor.dtype == ir.DataType.STRING or tensor.size > SHOWN:
        return f"a {tensor.dtype.name.lower()} tensor of shape {tuple(tensor.shape.numpy())}"
    return str(tensor.numpy().tolist())


def _origin(node: ir.Node) -> Origin:
    """From the metadata that torch.onnx notes, or from the path that an exported file keeps."""
    from trueport.graphs.origin import MODULE_KEY, module_path

    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    module = node.metadata_props.get(MODULE_KEY, "") or module_path(scopes)
    from trueport.capture import source_line

    return Origin(module, source_line(node.metadata_props.get("pkg.torch.onnx.stack_trace", "")))


def traced_name(node: ir.Node) -> str:
    """The name of the operation of the exported program that a node gives the result of; empty where it is a part."""
    scopes = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    names = ast.literal_eval(scopes) if scopes.startswith("[") else []
    return str(names[-1]) if names and node.outputs and node.outputs[0].name == names[-1] else ""


class Opened:
    """A graph whose every value can be asked for, run without ONNX Runtime's own rewriting.

    Args:
        path: the ``.onnx`` file; its weights may lie beside it.
    """

    def __init__(self, path: Path) -> None:
        import onnx
        import onnxruntime

        proto = onnx.load(path, load_external_data=False)
        given = {value.name for value in proto.graph.output}
        self.names = [name for node in proto.graph.node for name in node.output if name]
        proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self.names if name not in given)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(path.parent))
        self.path = path
        try:
            self.runtime = onnxruntime.InferenceSession(
                proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise self._broken(error) from error
        self.inputs = {value.name for value in self.runtime.get_inputs()}

    def values(
        self, feeds: Mapping[str, np.ndarray], names: Sequence[str] | None = None
    ) -> Iterator[tuple[str, np.ndarray]]:
        """The named values (all of them by default), a few at a time; sequences are left out."""
        from trueport.targets.onnx.session import from_numpy, to_numpy

        given = {name: from_numpy(array) for name, array in feeds.items() if name in self.inputs}
        wanted = list(self.names if names is None else names)
        for start in range(0, len(wanted), AT_ONCE):
            some = wanted[start : start + AT_ONCE]
            try:
                results = self.runtime.run_with_ort_values(some, given)
            except Exception as error:
                raise self._broken(error) from error
            for name, value in zip(some, results, strict=True):
                if value.is_tensor():
                    yield name, to_numpy(value)

    def _broken(self, error: Exception) -> ArtifactError:
        """A graph that stops somewhere has no result to be compared; the runtime's words name the node."""
        reason = " ".join(str(error).split())[:300]
        return ArtifactError(
            f"ONNX Runtime cannot run {self.path.name} at all: {reason}",
            "Its nodes do not fit together: look at the inputs of the one that is named, or export again.",
        )


def jittered(path: Path, place: Path, seed: int) -> Path:
    """A copy of a graph whose every float weight is one unit in the last place up or down (Parker, 1997)."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(path)
    rng = np.random.default_rng(seed)
    for tensor in proto.graph.initializer:
        if tensor.data_type not in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.DOUBLE):
            continue
        array = numpy_helper.to_array(tensor)
        towards = np.where(rng.random(array.shape) < 0.5, -1.0, 1.0) * np.abs(array.astype(np.float64)) * 2
        plain = np.isfinite(array) & (np.abs(array.astype(np.float64)) < float(np.finfo(array.dtype).max) / 4)
        with np.errstate(over="ignore"):
            moved = np.where(plain, np.nextafter(array, towards.astype(array.dtype)), array)
        tensor.CopyFrom(numpy_helper.from_array(moved.astype(array.dtype), tensor.name))
    place.mkdir()
    onnx.save(proto, place / path.name, save_as_external_data=True, location="weights")
    return place / path.name
