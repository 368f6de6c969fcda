"""A captured program without operators that write in place, without tracing it again.

ExecuTorch calls ``program.run_decompositions({})`` for this, which runs the whole program twice under fake tensors: a
quarter of a lowering. What a transformer writes to is a cache, once, or a value that nobody else sees. Anything else, and
the program takes torch's own way.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind, OutputSpec, TensorArgument

from trueport.patches.context import applied_where_there
from trueport.patches.patch import Patch
from trueport.targets.onnx.decompose import IN_PLACE, is_unshared, keeps_dtype
from trueport.targets.pieces import bodies, decomposed, named


def functional(program: ExportedProgram) -> ExportedProgram | None:
    """The program with each write as the operator that gives a new value; None where torch has to find them."""
    if any(_is_mutable(node) for body in bodies(program.graph_module) for node in body.graph.nodes):
        return None
    buffers = {
        spec.arg.name: spec.target for spec in program.graph_signature.input_specs if spec.kind is InputKind.BUFFER
    }
    written: dict[str, torch.fx.Node] = {}
    for node in program.graph.nodes:
        if not _is_mutable(node):
            continue
        if node.target not in IN_PLACE or not keeps_dtype(node):
            return None
        target = node.args[0]
        if target.name in buffers and _is_own(target, node, program):
            written[target.name] = node
        elif not is_unshared(target, node):
            return None
    _rename(program)
    return _given_out(program, written, buffers)


def _is_mutable(node: torch.fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _is_own(buffer: torch.fx.Node, user: torch.fx.Node, program: ExportedProgram) -> bool:
    """Whether only ``user`` reads the buffer, which is memory of its own."""
    signature = program.graph_signature
    tensors = [*program.state_dict.values(), *program.constants.values()]
    own = _storage({**program.constants, **program.state_dict}[signature.inputs_to_buffers[buffer.name]])
    shared = sum(isinstance(tensor, torch.Tensor) and _storage(tensor) == own for tensor in tensors)
    return shared == 1 and list(buffer.users) == [user]


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _rename(program: ExportedProgram) -> None:
    for node in program.graph.nodes:
        if node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]


def _given_out(
    program: ExportedProgram, written: Mapping[str, torch.fx.Node], buffers: Mapping[str, str]
) -> ExportedProgram:
    """The program whose first outputs are what is written, in the order of the buffers."""
    first = [(buffers[name], written[name]) for name in buffers if name in written]
    output, before = program.graph.output_node(), program.graph_signature
    kept = [named(spec, given) for spec, given in zip(before.output_specs, output.args[0], strict=True)]
    output.args = ((*(node for _, node in first), *output.args[0]),)
    program.graph_module.recompile()
    mutations = [OutputSpec(OutputKind.BUFFER_MUTATION, TensorArgument(node.name), buffer) for buffer, node in first]
    return ExportedProgram(
        program.graph_module,
        program.graph,
        ExportGraphSignature(list(before.input_specs), [*mutations, *kept]),
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
    )


def _quick(original: Callable[..., ExportedProgram]) -> Callable[..., ExportedProgram]:
    def run(program: ExportedProgram, table: Any = None, *args: Any, **kwargs: Any) -> ExportedProgram:
        found = None
        if table is not None:
            found = decomposed(program, table, within=True) if table else functional(program)
        return original(program, table, *args, **kwargs) if found is None else found

    return run


QUICK = Patch(
    "torch.export.exported_program.ExportedProgram.run_decompositions",
    "a program is traced twice more so that nothing in it writes in place, and twice more to break operators up",
    "_gen_edge_manager_for_partitioners in exir/program/_program.py of ExecuTorch 1.4",
    _quick,
    lambda: [],
)


def quickly_functional() -> AbstractContextManager[None]:
    """Within, programs in which writes are plain to see are not traced again to take them out, or to break operators up."""
    return applied_where_there([QUICK])
