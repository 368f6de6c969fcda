"""What torch.onnx asks of ``run_decompositions``, without tracing the program a second time.

torch.onnx.export calls ``program.run_decompositions(table)``, which runs the whole program twice more under fake tensors:
40% of an export. Of what torch.export leaves in a transformer, almost all has an ONNX form already; the rest are casts,
spellings (``__and__`` for bitwise_and) and in-place operators on values that nobody else sees. Those are renamed in
the graph. Anything else, and the program takes torch's own way.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_aten = torch.ops.aten
CASTS = {_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout, _aten.to.other}
"""Composites that change the dtype, or nothing: a graph for the CPU has one device and one layout."""
SPELLINGS = {
    _aten.__and__.Tensor: _aten.bitwise_and.Tensor,
    _aten.__and__.Scalar: _aten.bitwise_and.Scalar,
    _aten.__or__.Tensor: _aten.bitwise_or.Tensor,
    _aten.__or__.Scalar: _aten.bitwise_or.Scalar,
    _aten.__xor__.Tensor: _aten.bitwise_xor.Tensor,
    _aten.min.other: _aten.minimum.default,
    _aten.max.other: _aten.maximum.default,
}
"""Operators and the same operator under the name that torch.onnx knows."""
IN_PLACE = {
    _aten.add_.Tensor: _aten.add.Tensor,
    _aten.sub_.Tensor: _aten.sub.Tensor,
    _aten.mul_.Tensor: _aten.mul.Tensor,
    _aten.div_.Tensor: _aten.div.Tensor,
    _aten.index_put_.default: _aten.index_put.default,
}
"""In-place operators and what computes the same anew; the dtype must not change."""


@contextmanager
def spared_retracing(program: ExportedProgram) -> Iterator[None]:
    """Let ``program.run_decompositions`` rename in place of tracing, where that gives the same program.

    An attribute of this one object shadows the method for the while; torch itself stays as it is.
    """
    retrace = program.run_decompositions

    def run_decompositions(decomp_table: Any = None, *args: Any, **named: Any) -> ExportedProgram:
        targets = None if decomp_table is None else _plan(program, decomp_table)
        return retrace(decomp_table, *args, **named) if targets is None else _renamed(program, targets)

    program.run_decompositions = run_decompositions  # type: ignore[method-assign]
    try:
        yield
    finally:
        del program.run_decompositions


@functools.cache
def _translated() -> frozenset[Any]:
    """Operators with an ONNX form; empty, which means that every program is traced again, where torch moved the list."""
    try:
        from torch.onnx._internal.exporter import _decomp, _registration

        return frozenset(_decomp.get_onnx_implemented_overloads(_registration.ONNXRegistry.from_torchlib()))
    except (ImportError, AttributeError):
        return frozenset()


def _plan(program: ExportedProgram, table: Any) -> dict[str, Any] | None:
    """New targets by node name, ``None`` for a cast; None where the program has to be traced again."""
    signature = program.graph_signature
    nested = sum(1 for _ in program.graph_module.modules()) > 1
    if nested or signature.buffers_to_mutate or signature.user_inputs_to_mutate:
        return None
    targets: dict[str, Any] = {}
    for node in program.graph.nodes:
        target = node.target
        if node.op == "get_attr":
            return None
        if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
            continue
        if target in CASTS:
            targets[node.name] = None
        elif target in SPELLINGS:
            targets[node.name] = SPELLINGS[target]
        elif target in IN_PLACE and _unshared(node.args[0], node):
            targets[node.name] = IN_PLACE[target]
        elif target.name().startswith("aten::_assert"):
            continue  # torch.onnx drops them itself
        elif (
            target._schema.is_mutable or target in table or (target.namespace == "aten" and target not in _translated())
        ):
            return None
    return targets


def _unshared(value: torch.fx.Node, user: torch.fx.Node) -> bool:
    """Whether ``value`` is memory of its own that only ``user`` reads, and that keeps its dtype there."""
    if not isinstance(value.target, torch._ops.OpOverload) or len(value.users) != 1:
        return False
    if any(result.alias_info is not None for result in value.target._schema.returns):
        return False
    if value.target._can_decompose():  # a composite may return a view without saying so
        return False
    return value.meta["val"].dtype == user.meta["val"].dtype


def _renamed(program: ExportedProgram, targets: dict[str, Any]) -> ExportedProgram:
    module = copy.deepcopy(program.graph_module)
    graph = module.graph
    for node in list(graph.nodes):
        if node.name not in targets:
            continue
        if targets[node.name] is not None:
            node.target = targets[node.name]
            continue
        source, dtype = node.args[0], node.meta["val"].dtype
        given_out = any(user.op == "output" for user in node.users)  # the signature knows it by this name
        if source.meta["val"].dtype == dtype and not given_out:
            node.replace_all_uses_with(source)
            graph.erase_node(node)
        else:
            node.target, node.args, node.kwargs = _aten._to_copy.default, (source,), {"dtype": dtype}
    graph.eliminate_dead_code()
    module.recompile()
    return torch.export.ExportedProgram(
        module,
        graph,
        program.graph_signature,
        program.state_dict,
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        program.constants,
    )
