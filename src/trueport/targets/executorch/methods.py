"""Programs of one method each, and the one program that they are together.

ExecuTorch lowers and emits all methods at once. Here each is lowered by itself, so that one is finished before the next is
begun, and what they share is found when they are put together; the bytes are the same
(tests/targets/executorch/test_methods.py).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from executorch.exir import ExecutorchBackendConfig
from executorch.exir._serialize._named_data_store import NamedDataStore, NamedDataStoreOutput
from executorch.exir._serialize._serialize import serialize_for_executorch
from executorch.exir.emit import EmitterOutput
from executorch.exir.schema import (
    BackendDelegateInlineData,
    Buffer,
    EValue,
    ExecutionPlan,
    Program,
    SubsegmentOffsets,
    Tensor,
    TensorDataLocation,
)
from executorch.exir.version import EXECUTORCH_SCHEMA_VERSION
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorConfig, FlatTensorSerializer

from trueport.errors import LoweringError

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager
    from executorch.exir._serialize._cord import Cord

    from trueport.interface import Interface
    from trueport.targets.executorch.blobs import Blob


@dataclass(frozen=True)
class Emitted:
    """A method as ExecuTorch emits it, and the bytes that it refers to by their places in these lists.

    Attributes:
        plan: of the method.
        constants: that lie in the program; the first is empty.
        mutable: what buffers begin with; the first is empty.
        delegates: what XNNPACK made of each partition.
        external: constants that lie beside the program.
        names: names of those, by place, for each file beside the program.
        named: the weights that delegates ask for by name.
    """

    plan: ExecutionPlan
    constants: tuple[Blob, ...]
    mutable: tuple[Blob, ...]
    delegates: tuple[Blob, ...]
    external: tuple[Blob, ...]
    names: Mapping[str, Mapping[str, int]]
    named: NamedDataStoreOutput


@dataclass(frozen=True)
class Method:
    """A component, lowered: all that the artefact tells of it, but for the file that it comes to lie in."""

    name: str
    stem: str
    emitted: Emitted
    interface: Interface
    guards: tuple[int, ...]
    depth: int
    memory: Mapping[str, Any]
    kernels: tuple[str, ...]


def emitted(program: ExecutorchProgramManager) -> Emitted:
    """The only method of a program."""
    output, found = program._emitter_output, program.executorch_program
    (plan,) = found.execution_plan
    return Emitted(
        plan,
        tuple(buffer.storage for buffer in found.constant_buffer),
        tuple(buffer.storage for buffer in output.mutable_data or ()),
        tuple(entry.data for entry in found.backend_delegate_data),
        tuple(output.external_constant_buffer),
        output.external_constant_map or {},
        program._named_data,
    )


class _Pool:
    """Bytes of several methods, each of them once."""

    def __init__(self, first: Sequence[Blob] = ()) -> None:
        self.blobs = list(first)
        self._places: dict[str, int] = {}

    def add(self, blobs: Sequence[Blob]) -> list[int]:
        """Where each of a method's blobs lies among all."""
        return [self._place(blob) for blob in blobs]

    def _place(self, blob: Blob) -> int:
        digest = hashlib.sha256(blob).hexdigest()
        if digest not in self._places:
            self._places[digest] = len(self.blobs)
            self.blobs.append(blob)
        return self._places[digest]


def together(methods: Sequence[Emitted], config: ExecutorchBackendConfig) -> tuple[Cord, dict[str, Cord]]:
    """The program with all methods, and what lies beside it by the stem of the file's name."""
    output, named = _merged(methods)
    serializer = FlatTensorSerializer(FlatTensorConfig(segment_alignment=config.segment_alignment))
    return serialize_for_executorch(output, config, serializer, named)  # type: ignore[no-any-return]


def _merged(methods: Sequence[Emitted]) -> tuple[EmitterOutput, NamedDataStoreOutput]:
    """What ExecuTorch emits for all of them at once: methods by name, each blob where it is first met."""
    constants, mutable, delegates, external = _Pool([b""]), _Pool([b""]), _Pool(), _Pool()
    names: dict[str, dict[str, int]] = {}
    plans = []
    for method in sorted(methods, key=lambda method: method.plan.name):
        places = {
            "constants": [0, *constants.add(method.constants[1:])],
            "mutable": [0, *mutable.add(method.mutable[1:])],
            "external": external.add(method.external),
        }
        plans.append(_moved(method.plan, places, delegates.add(method.delegates)))
        for file, entries in method.names.items():
            own = {name: places["external"][place] for name, place in entries.items()}
            names.setdefault(file, {}).update(own)
    store = NamedDataStore()
    for method in methods:
        store.merge_named_data_store(method.named)
    program = Program(
        version=EXECUTORCH_SCHEMA_VERSION,
        execution_plan=plans,
        constant_buffer=[Buffer(storage=blob) for blob in constants.blobs],
        backend_delegate_data=[BackendDelegateInlineData(data=blob) for blob in delegates.blobs],
        segments=[],
        constant_segment=SubsegmentOffsets(segment_index=0, offsets=[]),
        mutable_data_segments=None,
    )
    output = EmitterOutput(
        program=program,
        debug_handle_map={},
        method_to_delegate_debug_id_map={},
        instruction_id_to_num_outs_map={},
        mutable_data=[Buffer(storage=blob) for blob in mutable.blobs] if len(mutable.blobs) > 1 else None,
        external_constant_buffer=external.blobs,
        external_constant_map=names,
    )
    return output, store.get_named_data_store_output()


def _moved(plan: ExecutionPlan, places: Mapping[str, Sequence[int]], delegates: Sequence[int]) -> ExecutionPlan:
    """The plan, its references to blobs changed to where these lie among those of all methods."""

    def moved(entry: EValue) -> EValue:
        tensor = entry.val
        # What has no bytes has the place 0, as the first constant beside the program has.
        if not isinstance(tensor, Tensor) or not (tensor.data_buffer_idx or _is_external(tensor)):
            return entry
        place = places[_pool(tensor)][tensor.data_buffer_idx]
        return replace(entry, val=replace(tensor, data_buffer_idx=place))

    entries = [
        replace(entry, processed=replace(entry.processed, index=delegates[entry.processed.index]))
        for entry in plan.delegates
    ]
    return replace(plan, values=[moved(value) for value in plan.values], delegates=entries)


def _pool(tensor: Tensor) -> str:
    """Which list a tensor's place is in."""
    if _is_external(tensor):
        return "external"
    if tensor.allocation_info is not None and tensor.extra_tensor_info is not None:
        raise LoweringError("ExecuTorch planned memory for a named constant, whose place is told by neither list")
    return "constants" if tensor.allocation_info is None else "mutable"


def _is_external(tensor: Tensor) -> bool:
    info = tensor.extra_tensor_info
    return info is not None and info.location == TensorDataLocation.EXTERNAL
