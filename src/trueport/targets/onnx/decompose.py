"""A program in operators that have an ONNX form, without tracing it a second time.

torch.onnx.export calls ``program.run_decompositions(table)``, which runs the whole program twice more under fake tensors:
40% of an export. Of what torch.export leaves in a transformer, almost all has an ONNX form already; the rest are casts,
spellings (``__and__`` for bitwise_and) and in-place operators on values that nobody else sees. Those are renamed in
the graph. Operators without a form are broken up one by one (targets/pieces.py). Anything else, and the program takes
torch's own way.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

import torch

from trueport.targets import pieces

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_aten = torch.ops.aten
CASTS = {_aten.to.dtype, _aten.to.device, _aten.to.dtype_layout, _aten.to.other, _aten.detach_.default}
"""What changes the dtype, or nothing: a graph for the CPU has one device and one layout, and no gradients."""
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
"""In-place operators and what computes the same anew, where ``keeps_dtype``."""


def decomposed(
    plainly: Callable[[ExportedProgram, Any], ExportedProgram], program: ExportedProgram, registry: Any
) -> ExportedProgram:
    """The program in operators that have an ONNX form; renamed in place of traced, where that gives the same one.

    Args:
        plainly: torch's own pass.
        program: what was captured.
        registry: of the ONNX forms.
    """
    try:
        from torch.onnx._internal.exporter import _decomp

        implemented = frozenset(_decomp.get_onnx_implemented_overloads(registry))
    except (ImportError, AttributeError):  # torch moved the list
        return plainly(program, registry)
    targets = _plan(program, implemented)
    if targets is None:
        return plainly(program, registry)
    renamed = _renamed(program, targets)
    if all(_has_form(node.target, implemented) for node in renamed.graph.nodes):
        return renamed
    table = _decomp.create_onnx_friendly_decomposition_table(set(implemented))
    found = pieces.decomposed(renamed, table)
    return plainly(program, registry) if found is None else found


def _plan(program: ExportedProgram, implemented: Collection[Any]) -> dict[str, Any] | None:
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
        elif target in IN_PLACE and keeps_dtype(node) and is_unshared(node.args[0], node):
            targets[node.name] = IN_PLACE[target]
        elif target._schema.is_mutable and not _is_assertion(target):
            return None
    return targets


def _is_assertion(target: torch._ops.OpOverload) -> bool:
    """Whether torch.onnx drops the operator itself."""
    return target.name().startswith("aten::_assert")


def _has_form(target: Any, implemented: Collection[Any]) -> bool:
    """Whether torch.onnx converts a node as it is, or has to be told by it that it cannot."""
    if not isinstance(target, torch._ops.OpOverload) or _is_assertion(target):
        return True
    return target in implemented or (target.namespace != "aten" and target not in _table())


@functools.cache
def _table() -> frozenset[Any]:
    """Operators that torch.onnx would decompose."""
    return frozenset((*torch.export.default_decompositions(), *torch._decomp.decomposition_table))


def keeps_dtype(node: torch.fx.Node) -> bool:
    """Whether what an in-place operator computes anew is of the dtype that it writes to: half += float32 stays half."""
    operands: list[Any] = [arg.meta["val"] if isinstance(arg, torch.fx.Node) else arg for arg in node.args[:2]]
    written, other = operands
    # What index_put writes is of the same dtype, or it does not run.
    plain = isinstance(other, (torch.Tensor, int, float, bool))
    return not plain or bool(torch.result_type(written, other) == written.dtype)


def is_unshared(value: torch.fx.Node, user: torch.fx.Node) -> bool:
    """Whether ``value`` is memory of its own, which others read before ``user`` at most, and keep nothing of."""
    readers = [other for other in value.users if other is not user]
    return _is_own(value) and all(other < user and _is_new(other) for other in readers)


def _is_own(value: torch.fx.Node) -> bool:
    """Whether ``value`` is new, or a view of what is new and has no other user."""
    made = value
    if value.target is operator.getitem:
        made, place = value.args  # type: ignore[assignment]
        if sum(other.args[1:] == (place,) for other in made.users) > 1:
            return False
    if _is_new(made):
        return True
    given = [node for node in value.all_input_nodes if isinstance(node.meta.get("val"), torch.Tensor)]
    plain = isinstance(value.target, torch._ops.OpOverload) and not value.target._schema.is_mutable
    return plain and len(given) == 1 and len(given[0].users) == 1 and _is_own(given[0])


def _is_new(node: torch.fx.Node) -> bool:
    """Whether what a node gives is no view of what it is given."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return False
    if any(result.alias_info is not None for result in node.target._schema.returns):
        return False
    return _multiplies(node) or not node.target._can_decompose()  # other composites may return a view without saying so


def _multiplies(node: torch.fx.Node) -> bool:
    """Whether a node gives a product, which is new; an einsum of one operand is none."""
    operands: Any = node.args[1:2]
    return node.target is _aten.matmul.default or (node.target is _aten.einsum.default and len(operands[0]) > 1)


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
