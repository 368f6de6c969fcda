"""A method of an ExecuTorch program as a flow; the operators inside XNNPACK's delegates are operations like all others."""

from __future__ import annotations

import hashlib
import json
import math
import struct
import tempfile
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from trueport.diagnosis.divergence.flow import Flow, Operation, Origin
from trueport.errors import ArtifactError

HEADER = struct.Struct("<HIIIQ")
"""XNNPACK's payload from byte 8 on (backends/xnnpack/runtime/XNNHeader.h): header length, where the graph begins and its
size, where the constants begin and their size."""
NO_VALUE = 2**32 - 1
"""XNN_INVALID_VALUE_ID."""
SCALARS = ("executorch_prim::", "aten::sym_size", "aten::_local_scalar_dense", "aten::item", "aten::sym_numel")
"""Operators whose last argument is the number that they give."""
BYTES = {"FLOAT": 4, "LONG": 8, "INT": 4, "BOOL": 1, "DOUBLE": 8, "HALF": 2, "BFLOAT16": 2, "CHAR": 1, "BYTE": 1}
"""Of an element, by ExecuTorch's name of its type."""
SHOWN = 8
"""A constant of more elements is told by its shape."""
ORIGINS = Mapping[tuple[int, int | None], Origin]
"""By instruction, and by XNNPACK's debug handle inside a delegate."""


class _Reader:
    """One method, instruction by instruction."""

    def __init__(self, data: bytes, method: str, origins: ORIGINS, beside: Mapping[str, bytes]) -> None:
        from executorch.exir._serialize._program import deserialize_pte_binary

        file = deserialize_pte_binary(data)
        self.program, self.named, self.origins, self.beside = file.program, file.named_data, origins, beside
        self.plan = next(plan for plan in self.program.execution_plan if plan.name == method)
        self.constants: dict[str, str] = {}
        self.shown: dict[str, str] = {}
        self.known = {self._name(index) for index in self.plan.inputs}
        self.operations: list[Operation] = []

    def flow(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Flow:
        """Named as the interface names inputs and outputs."""
        for chain in self.plan.chains:
            for index, instruction in enumerate(chain.instructions):
                step = instruction.instr_args
                if hasattr(step, "op_index"):
                    self._kernel(index, step)
                elif hasattr(step, "delegate_index"):
                    self._delegate(index, step)
                elif hasattr(step, "move_from"):
                    move = (self._read(step.move_from),), (self._name(step.move_to),)
                    self.operations.append(Operation(f"move_{index}", "move", *move))
        names = dict(zip(map(self._name, self.plan.inputs), inputs, strict=True))
        names |= dict(zip(map(self._name, self.plan.outputs), outputs, strict=True))
        renamed = tuple(
            Operation(
                each.name,
                each.kind,
                tuple(names.get(name, name) for name in each.inputs),
                tuple(names.get(name, name) for name in each.outputs),
                each.attributes,
                each.origin,
            )
            for each in self.operations
        )
        return Flow(renamed, inputs, outputs, self.constants, self.shown)

    def _name(self, index: int) -> str:
        return f"v{index}"

    def _read(self, index: int) -> str:
        """The value at an index; one that no instruction gave is a constant, or a buffer that the program keeps."""
        name = self._name(index)
        if name not in self.known and name not in self.constants:
            value = self.plan.values[index].val
            if type(value).__name__ == "Tensor":
                content = self._stored(value)
                kind = value.scalar_type.name
                size = math.prod(value.sizes) * BYTES.get(kind, 0)
                # What the segment holds behind it, as padding, belongs to no tensor.
                content = content[:size] if size else content
                told = f"{kind} {list(value.sizes)} {hashlib.sha256(content).hexdigest()}"
                self._constant(name, told, _words(kind, value.sizes, content))
            else:
                told = repr(value)
                self._constant(name, told, told.partition("=")[2].rstrip(")") or "None")
        return name

    def _stored(self, tensor: Any) -> bytes:
        info = tensor.extra_tensor_info
        if info is not None and info.location.name == "EXTERNAL":
            return self.beside.get(info.fully_qualified_name, b"")
        return bytes(self.program.constant_buffer[tensor.data_buffer_idx].storage) if tensor.data_buffer_idx else b""

    def _constant(self, name: str, digest: str, words: str) -> None:
        self.constants[name], self.shown[name] = digest, words

    def _kernel(self, index: int, call: Any) -> None:
        operator = self.plan.operators[call.op_index]
        kind = f"{operator.name}.{operator.overload}"
        args, outputs = list(call.args), []
        if kind.startswith(SCALARS):
            outputs.append(self._name(args.pop()))
        inputs: list[str] = []
        for argument in args:
            for part in self._parts(argument):
                name = self._name(part)
                if part >= 0 and self._is_fresh(part):
                    outputs.append(name)
                elif name not in outputs:
                    inputs.append(self._read(part) if part >= 0 else "")
        outputs = list(dict.fromkeys(outputs))
        self.known.update(outputs)
        origin = self.origins.get((index, None), Origin())
        self.operations.append(Operation(f"instruction {index}", kind, tuple(inputs), tuple(outputs), {}, origin))

    def _parts(self, argument: int) -> list[int]:
        """The values of a list, or the value itself."""
        value = self.plan.values[argument].val
        if type(value).__name__ in ("IntList", "TensorList", "OptionalTensorList"):
            return list(value.items)
        return [argument]

    def _is_fresh(self, index: int) -> bool:
        """Whether a tensor is written here for the first time: planned memory that holds nothing yet."""
        value = self.plan.values[index].val
        planned = type(value).__name__ == "Tensor" and not value.data_buffer_idx and value.allocation_info is not None
        # What the program keeps from call to call is planned too, and has a name.
        kept = planned and value.extra_tensor_info is not None and value.extra_tensor_info.fully_qualified_name
        return planned and not kept and self._name(index) not in self.known

    def _delegate(self, index: int, call: Any) -> None:
        delegate = self.plan.delegates[call.delegate_index]
        if delegate.id != "XnnpackBackend":
            raise ArtifactError(f"Trueport cannot read what is delegated to {delegate.id}", "It reads XNNPACK's.")
        blob = bytes(self.program.backend_delegate_data[delegate.processed.index].data)
        graph, data = _decoded(blob)
        names: dict[int, str] = {NO_VALUE: ""}
        given: list[str] = []
        for entry in graph["xvalues"]:
            union = entry["xvalue_union"]
            value = union.get("tensor_value", union)
            name = f"d{index}.{value['id_out']}"
            names[value["id_out"]] = name
            if value["flags"] & 3:  # outer: 1 for an input, 2 for an output
                names[value["id_out"]] = self._name(call.args[value["external_id"]])
                (
                    given.append(names[value["id_out"]])
                    if value["flags"] & 2
                    else self._read(call.args[value["external_id"]])
                )
            elif value["constant_buffer_idx"]:
                content = self._content(graph["constant_data"][value["constant_buffer_idx"]], data)
                digest = hashlib.sha256(content).hexdigest()
                scales = (
                    {key: part for key, part in union.items() if key != "tensor_value"}
                    if "tensor_value" in union
                    else ""
                )
                kind = "FLOAT" if value["datatype"] == "xnn_datatype_fp32" else value["datatype"]
                told = f"{kind} {value['dims']} {scales} {digest}"
                self._constant(name, told, _words(kind, value["dims"], content))
        for number, node in enumerate(graph["xnodes"]):
            self.operations.append(_node(index, number, node, names, self.origins))
        self.known.update(given)

    def _content(self, entry: Mapping[str, Any], data: bytes) -> bytes:
        key = entry.get("named_key")
        if key:
            found = self.named.pte_data.get(key) if self.named is not None else None
            content = (
                self.named.buffers[found.buffer_index] if found is not None else self.beside.get(key, key.encode())
            )
        else:
            content = data[entry["offset"] : entry["offset"] + entry["size"]]
        return bytes(content)


def _words(kind: str, sizes: Sequence[int], content: bytes) -> str:
    """A constant: its numbers where they are few."""
    dtype = {"FLOAT": np.float32, "LONG": np.int64, "INT": np.int32, "BOOL": np.bool_}.get(kind)
    count = math.prod(sizes)
    if dtype is None or count > SHOWN or len(content) < count * np.dtype(dtype).itemsize:
        return f"a tensor of shape {list(sizes)}"
    return str(np.frombuffer(content, dtype, count).reshape(sizes).tolist())


def _node(index: int, number: int, node: Mapping[str, Any], names: Mapping[int, str], origins: ORIGINS) -> Operation:
    inputs: list[str] = []
    outputs: list[str] = []
    attributes: dict[str, Any] = {}
    union = {**node["xnode_union"], **({"bounds": node["output_min_max"]} if node.get("output_min_max") else {})}
    for key, value in union.items():
        ids = value if isinstance(value, list) else [value]
        if key.endswith(("_id", "_ids")) or key.rstrip("0123456789").endswith("_id"):
            (outputs if key.startswith("output") else inputs).extend(names.get(each, "") for each in ids)
        elif key.startswith("input") and key[-1].isdigit():
            inputs.extend(names.get(each, "") for each in ids)
        else:
            attributes[key] = value
    kind = f"XNNPACK {str(node['xnode_union_type']).removeprefix('XNN')}"
    origin = origins.get((index, node.get("debug_handle")), Origin())
    return Operation(f"instruction {index}, node {number}", kind, tuple(inputs), tuple(outputs), attributes, origin)


def _decoded(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """XNNPACK's graph, and the constants that lie beside it; read by the flatbuffer compiler that ExecuTorch brings."""
    import executorch.backends.xnnpack.serialization as home
    from executorch.exir._serialize._flatbuffer import _flatc_decompile

    _, start, size, constants, length = HEADER.unpack_from(blob, 8)
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder) / "schema.fbs", Path(folder) / "graph.bin"
        schema.write_bytes(files(home).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(blob[start : start + size])
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        graph: dict[str, Any] = json.loads((Path(folder) / "graph.json").read_text(encoding="utf-8"))
    return graph, blob[constants : constants + length]


def flow_of(
    data: bytes,
    method: str,
    inputs: tuple[str, ...],
    outputs: tuple[str, ...],
    origins: ORIGINS,
    beside: Mapping[str, bytes],
) -> Flow:
    """One method of a ``.pte``.

    Args:
        data: the file.
        method: its name.
        inputs: names for its inputs, in order.
        outputs: the same for what it gives out.
        origins: where operations come from; empty where the file is all there is.
        beside: by name the weights that lie in a file of their own.
    """
    return _Reader(data, method, origins, beside).flow(inputs, outputs)


def origins_of(program: Any, method: str) -> dict[tuple[int, int | None], Origin]:
    """Of a program that was just lowered: its graph still tells where each instruction comes from."""
    found: dict[tuple[int, int | None], Origin] = {}
    module = program.exported_program(method).graph_module
    for node in module.graph.nodes:
        handle = node.meta.get("debug_handle")
        if node.op != "call_function" or not isinstance(handle, int):
            continue
        found[handle, None] = origin_of_node(node)
        if "call_delegate" in str(node.target):
            inner = getattr(module, node.args[0].target).original_module.graph_module
            for each in inner.graph.nodes:
                if isinstance(each.meta.get("debug_handle"), int):
                    found.setdefault((handle, each.meta["debug_handle"]), origin_of_node(each))
    return found


def origin_of_node(node: Any) -> Origin:
    """From what torch.export notes: the stack of modules and the traceback."""
    from trueport.capture import source_line
    from trueport.graphs.origin import module_path

    paths = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return Origin(module_path(str([*paths, ""])), source_line(node.meta.get("stack_trace") or ""))
