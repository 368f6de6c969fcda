"""Reading an ONNX file that a stranger wrote: refused in one line where it would read elsewhere, hang or explode."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.errors import ArtifactError

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

MAX_NODES = 200_000
"""Nodes of a graph with its functions written out; ten times the largest model in use, seconds to walk."""
MAX_BYTES = 1 << 31
"""Where protobuf ends."""
MAX_ELEMENTS = 1 << 40
"""Elements of one tensor; a thousand times the largest weight in use."""
MAX_MADE = 1 << 32
"""Elements that one node may make out of a constant shape."""
DOMAINS = {
    "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training", "com.microsoft",
    "com.microsoft.nchwc", "com.microsoft.experimental", "com.ms.internal.nhwc",
}  # fmt: skip
"""Domains whose operators ONNX Runtime has."""
MAKERS = {"ConstantOfShape": 0, "Expand": 1, "Tile": 1}
"""Operators that make a tensor of any size, and which input says the size."""


class GraphError(ArtifactError):
    """An ONNX file that cannot be read, or must not be."""


def load(path: str | Path) -> ir.Model:
    """The checked graph; weights in files stay there until they are read.

    Raises:
        GraphError: see ``check``.
    """
    import onnx_ir as ir

    from trueport.graphs.links import readable
    from trueport.graphs.shapes import free_axes

    path = Path(path)
    proto = check(path)
    free_axes(proto)
    try:
        model = ir.from_proto(proto)
    except Exception as error:
        raise GraphError(f"{path.name} is not a valid ONNX graph: {_one_line(error)}", "Export it again.") from error
    ir.external_data.set_base_dir(model.graph, path.parent)
    readable(model)
    if "ai.onnx" in model.opset_imports:  # the same domain by its other name, which no node has once it is read
        model.opset_imports.setdefault("", model.opset_imports.pop("ai.onnx"))
    return model


def check(path: str | Path) -> onnx.ModelProto:
    """Parse a file and refuse what no exporter writes; reads nothing but this file, and runs nothing.

    Refused are: what is not a whole ONNX graph, data files outside the graph's folder (absolute, ``..``, symlinks) or
    shorter than the graph says, tensors and constant shapes of absurd size, cycles, functions that call themselves or
    unfold without end, more than ``MAX_NODES`` nodes, operators of unknown domains.

    Raises:
        GraphError: with what is wrong, in which file.
    """
    path = Path(path)
    proto = _parse(path)
    try:
        graphs = _bodies(proto, path)
        _check_size(proto, graphs, path)
        _check_names(graphs, path)
        _check_domains(proto, graphs, path)
        _check_splits(graphs, path)
        _check_sources(proto, path)
        for nodes, tensors in graphs:
            for tensor in tensors:
                _check_tensor(tensor, path)
            _check_order(nodes, path)
        _check_shapes(proto, graphs, path)
    except UnicodeDecodeError as error:
        raise GraphError(f"{path.name} holds names that are no text", "Export it again.") from error
    return proto


def _check_names(graphs: list[Body], path: Path) -> None:
    """protobuf hands out bytes where a name is no UTF-8."""
    for nodes, tensors in graphs:
        names = [tensor.name for tensor in tensors]
        for node in nodes:
            names += [node.name, node.op_type, node.domain, *node.input, *node.output]
            names += [attribute.name for attribute in node.attribute]
        if not all(isinstance(name, str) for name in names):
            raise GraphError(f"{path.name} holds names that are no text", "Export it again.")


def _check_sources(proto: onnx.ModelProto, path: Path) -> None:
    """Whatever a node reads is an input, a weight or another node's result."""
    graph = proto.graph
    known = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {""}
    known |= {sparse.values.name for sparse in graph.sparse_initializer}
    bodies: list[tuple[Any, set[str]]] = [(graph, known)]
    bodies += [(function, {*function.input, ""}) for function in proto.functions]
    for body, given in bodies:
        given |= {name for node in body.node for name in node.output}
        wanted = [name for node in body.node for name in _reads(node)]
        wanted += [value if isinstance(value, str) else value.name for value in body.output]
        lost = next((name for name in wanted if name not in given), None)
        if lost is not None:
            raise GraphError(f"{path.name}: the value {lost!r} is read and nothing gives it", "Export it again.")


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    if not path.is_file():
        raise GraphError(f"{path} is not a file", "Give the .onnx file itself.")
    size = path.stat().st_size
    if size >= MAX_BYTES:
        raise GraphError(f"{path.name} has {size:,} bytes, more than an ONNX file can", "Keep its weights beside it.")
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(path.read_bytes())
    except (DecodeError, ValueError, RuntimeError) as error:
        raise GraphError(
            f"{path.name} is not an ONNX file, or not all of it ({size:,} bytes)", "Copy or export it again."
        ) from error
    if not proto.HasField("graph") or not proto.opset_import:
        raise GraphError(f"{path.name} holds no ONNX graph", "Give the .onnx file itself.")
    return proto


Body = tuple[list[Any], list[Any]]
"""The nodes of one graph or function, and the tensors that it holds."""


def _bodies(proto: onnx.ModelProto, path: Path) -> list[Body]:
    """The main graph, every graph inside a node, every function; stops where there are too many nodes."""
    bodies: list[Body] = []
    count = 0
    waiting: list[Any] = [proto.graph, *proto.functions]
    for info in proto.training_info:
        waiting += [info.initialization, info.algorithm]
    while waiting:
        body = waiting.pop()
        count += len(body.node)
        if count > MAX_NODES:
            raise GraphError(f"{path.name} has more than {MAX_NODES:,} nodes", "No model that Trueport knows has.")
        tensors = list(getattr(body, "initializer", ()))
        for sparse in getattr(body, "sparse_initializer", ()):
            tensors += [sparse.values, sparse.indices]
        nodes = list(body.node)
        for attribute in _attributes(nodes):
            tensors += [attribute.t, *attribute.tensors] if attribute.HasField("t") else attribute.tensors
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                tensors += [sparse.values, sparse.indices]
        waiting += [graph for node in nodes for graph in _inner(node)]
        bodies.append((nodes, tensors))
    return bodies


def _attributes(nodes: Iterable[Any]) -> Iterator[Any]:
    for node in nodes:
        yield from node.attribute


def _check_size(proto: onnx.ModelProto, graphs: list[Body], path: Path) -> None:
    """Functions that call each other: no recursion, and not more nodes than allowed once they are written out."""
    functions = {(f.domain, f.name, f.overload): f for f in proto.functions}
    sizes: dict[tuple[str, str, str], int] = {}
    open_calls: list[tuple[str, str, str]] = []

    def calls(body: Any) -> Iterator[Any]:
        waiting = [body]
        while waiting:
            graph = waiting.pop()
            for node in graph.node:
                yield node
                waiting += _inner(node)

    def size(body: Any) -> int:
        total = 0
        for node in calls(body):
            key = (node.domain, node.op_type, node.overload)
            total += 1 if key not in functions else function_size(key)
            if total > MAX_NODES:
                raise GraphError(f"{path.name} has more than {MAX_NODES:,} nodes once its functions are written out")
        return total

    def function_size(key: tuple[str, str, str]) -> int:
        if key in open_calls or len(open_calls) > 64:
            raise GraphError(f"{path.name}: the function {key[1]} calls itself", "No runtime can load it.")
        if key not in sizes:
            open_calls.append(key)
            sizes[key] = size(functions[key])
            open_calls.pop()
        return sizes[key]

    for key in functions:
        function_size(key)
    size(proto.graph)


def _check_domains(proto: onnx.ModelProto, graphs: list[Body], path: Path) -> None:
    own = {(function.domain, function.name) for function in proto.functions}
    for nodes, _ in graphs:
        for node in nodes:
            if node.domain not in DOMAINS and (node.domain, node.op_type) not in own:
                raise GraphError(
                    f"{path.name}: node {node.name or node.output[:1]} is a {node.op_type} of the domain {node.domain}, "
                    "which Trueport does not know",
                    "Export it without custom operators.",
                )


def _check_splits(graphs: list[Body], path: Path) -> None:
    """ONNX Runtime ends the whole process where a Split gives another number of parts than it says."""
    for node in (node for nodes, _ in graphs for node in nodes if node.op_type == "Split"):
        said = next((attribute.i for attribute in node.attribute if attribute.name == "num_outputs"), len(node.output))
        if said != len(node.output):
            problem = (
                f"{path.name}: node {node.name or node.output[0]} splits into {said} parts and names {len(node.output)}"
            )
            raise GraphError(problem, "Export it again.")


def _check_order(nodes: list[Any], path: Path) -> None:
    """No value twice, and no node that needs its own result (Kahn's algorithm)."""
    makers: dict[str, int] = {}
    for index, node in enumerate(nodes):
        for name in node.output:
            if name and makers.setdefault(name, index) != index:
                raise GraphError(f"{path.name}: two nodes give the value {name}", "Export it again.")
    needs = [{makers[name] for name in _reads(node) if name in makers} for node in nodes]
    users: dict[int, list[int]] = {}
    for index, needed in enumerate(needs):
        for maker in needed:
            users.setdefault(maker, []).append(index)
    left = [len(needed) for needed in needs]
    ready = [index for index, count in enumerate(left) if not count]
    done = 0
    while ready:
        done += 1
        for user in users.get(ready.pop(), ()):
            left[user] -= 1
            if not left[user]:
                ready.append(user)
    if done < len(nodes):
        stuck = next(node for node, count in zip(nodes, left, strict=True) if count)
        name = stuck.name or ", ".join(stuck.output)
        raise GraphError(f"{path.name}: the graph runs in a circle at node {name}", "Export it again.")


def _reads(node: Any) -> Iterator[str]:
    """Names that a node reads, those that its graphs take from outside included."""
    yield from node.input
    waiting: list[tuple[Any, frozenset[str]]] = [(graph, frozenset()) for graph in _inner(node)]
    while waiting:
        graph, outer = waiting.pop()
        own = {name for inner in graph.node for name in inner.output}
        own |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer} | {"", *outer}
        for inner in graph.node:
            yield from (name for name in inner.input if name not in own)
            waiting += [(deeper, frozenset(own)) for deeper in _inner(inner)]
        yield from (value.name for value in graph.output if value.name not in own)


def _inner(node: Any) -> list[Any]:
    """The graphs inside a node: an If's branches, a Loop's body."""
    found: list[Any] = []
    for attribute in node.attribute:
        found += [attribute.g, *attribute.graphs] if attribute.HasField("g") else attribute.graphs
    return found


def _check_tensor(tensor: Any, path: Path) -> None:
    """Dimensions that exist, and as many bytes as they say: here, or in a file of this folder."""
    import onnx

    count = 1
    for size in tensor.dims:
        count *= size
        if size < 0 or size > MAX_ELEMENTS or count > MAX_ELEMENTS:
            raise GraphError(f"{path.name}: tensor {tensor.name} has the shape {list(tensor.dims)[:8]}", "No file can.")
    if tensor.data_type == onnx.TensorProto.UNDEFINED and not tensor.dims and not tensor.name:
        return  # an attribute's unset field
    expected = _bytes(tensor.data_type, count)
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        _check_external(tensor, expected, path)
    elif tensor.HasField("raw_data") and expected is not None and len(tensor.raw_data) != expected:
        raise GraphError(
            f"{path.name}: tensor {tensor.name} of shape {list(tensor.dims)[:8]} holds {len(tensor.raw_data):,} bytes "
            f"instead of {expected:,}",
            "Export it again.",
        )
    elif not tensor.HasField("raw_data") and count > 0:
        fields = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
        held = sum(len(getattr(tensor, field)) for field in fields)
        if not count // 8 <= held <= 2 * count:  # sub-byte types pack, complex ones take two
            raise GraphError(f"{path.name}: tensor {tensor.name} of shape {list(tensor.dims)[:8]} holds {held} numbers")


def _bytes(data_type: int, count: int) -> int | None:
    """Bytes of ``count`` elements; None for strings and for what this version does not know."""
    import onnx_ir as ir

    if data_type == ir.DataType.STRING.value:
        return None
    try:
        return -(-count * ir.DataType(data_type).bitwidth // 8)
    except (ValueError, TypeError, KeyError):
        return None


def _check_external(tensor: Any, expected: int | None, path: Path) -> None:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if len(entries) != len(tensor.external_data):
        raise GraphError(f"{path.name}: tensor {tensor.name} says twice where its data lies")
    location = entries.get("location", "")
    where = f"{path.name}: the data of tensor {tensor.name}"
    if not location or "\0" in location or len(location) > 4096:
        raise GraphError(f"{where} has no place", "Export it again.")
    if Path(location).is_absolute() or ".." in Path(location).parts or "\\" in location or ":" in location:
        raise GraphError(f"{where} lies outside the graph's folder ({location})", "Put it beside the graph.")
    file = path.parent / location
    try:
        # A hub cache links the graph and its data from one folder of blobs; that folder is the graph's too.
        homes = (path.parent.resolve(), path.resolve().parent)
        inside = any(file.resolve().is_relative_to(home) for home in homes)
        present = inside and file.is_file()
    except (OSError, RuntimeError):
        inside, present = True, False
    if not inside:
        raise GraphError(f"{where} lies outside the graph's folder: {location} is a link", "Put it beside the graph.")
    if not present:
        raise GraphError(f"{where} is missing: there is no {location}", "Copy it along.")
    offset, length = (_number(entries.get(key), where) for key in ("offset", "length"))
    length = expected if length is None else length
    end = (offset or 0) + (length or 0)
    if end > file.stat().st_size:
        raise GraphError(f"{where} ends at byte {end:,}, {location} has {file.stat().st_size:,}", "Copy it again.")
    if expected is not None and length != expected:
        raise GraphError(f"{where} has {length:,} bytes, its shape needs {expected:,}", "Export it again.")


def _number(text: str | None, where: str) -> int | None:
    if text is None or text == "":
        return None
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise GraphError(f"{where} lies at {text[:40]!r}, which is no place in a file", "Export it again.")
    return int(text)


def _check_shapes(proto: onnx.ModelProto, graphs: list[Body], path: Path) -> None:
    """Declared shapes, and the shapes of tensors that a node makes from a constant."""
    for value in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        count = 1
        for axis in value.type.tensor_type.shape.dim:
            count *= max(axis.dim_value, 1)
            if count > MAX_ELEMENTS:
                raise GraphError(f"{path.name}: {value.name} is declared with {count:,} elements or more")
    for nodes, tensors in graphs:
        named = {tensor.name: tensor for tensor in tensors}
        written: dict[str, list[int]] = {}
        for node in nodes:
            if node.op_type == "Constant" and node.output and node.attribute:
                if node.attribute[0].HasField("t"):
                    named[node.output[0]] = node.attribute[0].t
                else:
                    written[node.output[0]] = [*node.attribute[0].ints, node.attribute[0].i]
        for node in nodes:
            if node.op_type != "Range" and node.op_type not in MAKERS:
                continue
            known = [_small_integers(named[name]) if name in named else written.get(name, ()) for name in node.input]
            count = _made(node.op_type, known)
            if count > MAX_MADE:
                raise GraphError(f"{path.name}: node {node.name or node.output[0]} makes {count:,} elements")


def _made(kind: str, known: list[Any]) -> int:
    """Elements of what a node makes, as far as its constant inputs tell."""
    if kind == "Range":
        if len(known) != 3 or not all(known) or not known[2][0]:
            return 0
        return (int(known[1][0]) - int(known[0][0])) // int(known[2][0])
    count = 1
    for size in known[MAKERS[kind]] if len(known) > MAKERS[kind] else ():
        count *= max(size, 1)
    return count


def _small_integers(tensor: Any) -> list[int]:
    """The numbers of a shape; empty for what is none."""
    import numpy as np
    import onnx

    if tensor.data_type != onnx.TensorProto.INT64 or len(tensor.dims) > 1 or sum(tensor.dims) > 64:
        return []
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return []
    held = np.frombuffer(tensor.raw_data, np.int64).tolist() if tensor.HasField("raw_data") else tensor.int64_data
    return [int(size) for size in held]


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
