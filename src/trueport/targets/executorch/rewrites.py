"""Rewrites of captured programs that ExecuTorch's lowering needs to stay true."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from trueport.targets.executorch.experts import write_experts
from trueport.targets.executorch.formulas import replace
from trueport.targets.executorch.recurrences import write_recurrences
from trueport.targets.executorch.spelled import spell
from trueport.targets.pieces import named

ASSERTIONS = ("_assert_scalar", "_assert_tensor_metadata", "_assert_async", "sym_constrain_range")
"""What torch.export leaves for its own runtime; ExecuTorch's verifier knows no such operators, and the session checks
sizes before it runs anything."""
CENTERED = "trueport.centered"
"""Mark of a layer norm whose input has its mean taken out already."""


def prepared(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """The same program in the form that lowers truly; changed in place."""
    _without_gradients(program.graph)
    _copy_given(program)
    _copy_branched(program)
    for module in list(program.graph_module.modules()):
        if isinstance(module, torch.fx.GraphModule):
            write_recurrences(module)
            write_experts(module)
    for module in program.graph_module.modules():  # branches and the bodies of loops among them
        if isinstance(module, torch.fx.GraphModule):
            drop_assertions(module.graph)
            _spell_masks(module.graph)
            _spell_gelu(module.graph)
            spell(module.graph)
            _spell_attention(module.graph)
            _center_norms(module.graph)
            module.graph.eliminate_dead_code()
            module.recompile()
    return program


def _without_gradients(graph: torch.fx.Graph) -> None:
    """A live model's weights may be trained on; what is made of them here is not, as from a checkpoint."""
    for node in graph.nodes:
        if node.op == "placeholder" and isinstance(node.meta.get("val"), torch.Tensor):
            node.meta["val"].requires_grad_(False)


def _copy_given(program: torch.export.ExportedProgram) -> None:
    """Give out copies of inputs and weights that are given out as they are, also under another operator's name.

    ExecuTorch 1.4.1 plans no memory for such an input, and its runtime in Python then gives zeros for every output; a weight
    that XNNPACK reads too is refused.
    """
    output, specs = program.graph.output_node(), program.graph_signature.output_specs
    given: list[Any] = list(output.args[0])  # type: ignore[arg-type]
    for place, node in enumerate(given):
        if isinstance(node, torch.fx.Node) and _is_given(node):
            with program.graph.inserting_before(output):
                given[place] = program.graph.call_function(torch.ops.aten.clone.default, (node,))
            given[place].meta["val"] = node.meta["val"].clone()
            specs[place] = named(specs[place], given[place])
    output.args = (tuple(given),)


def _is_given(node: torch.fx.Node) -> bool:
    """Whether a result is an input, or a view of one that changes nothing: ``x.float()`` of floats, ``x[:, :100]`` of 6."""
    while node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload) and node.args:
        source, results = node.args[0], node.target._schema.returns
        if not isinstance(source, torch.fx.Node) or not results or results[0].alias_info is None:
            return False
        found, given = node.meta["val"], source.meta["val"]
        if not isinstance(found, torch.Tensor) or not isinstance(given, torch.Tensor) or found.dtype != given.dtype:
            return False
        if [str(size) for size in found.shape] != [str(size) for size in given.shape]:
            return False
        node = source
    return node.op == "placeholder" and isinstance(node.meta["val"], torch.Tensor)


def _copy_branched(program: torch.export.ExportedProgram) -> None:
    """Give branches copies of the weights that others read too: what XNNPACK packs, ExecuTorch refuses to give to both."""
    signature = program.graph_signature
    weights = {
        *signature.inputs_to_parameters,
        *signature.inputs_to_buffers,
        *signature.inputs_to_lifted_tensor_constants,
    }
    for node in program.graph.nodes:
        if not isinstance(node.target, torch._ops.HigherOrderOperator):
            continue
        for given in node.all_input_nodes:
            if given.name in weights and len(given.users) > 1:
                with program.graph.inserting_before(node):
                    copied = program.graph.call_function(torch.ops.aten.clone.default, (given,))
                copied.meta["val"] = given.meta["val"].clone()
                node.replace_input_with(given, copied)


def drop_assertions(graph: torch.fx.Graph) -> None:
    """Take out torch's runtime assertions, and those that a later pass would write again."""
    for node in graph.nodes:
        value: Any = node.meta.get("val")
        sizes: tuple[Any, ...] = tuple(value.shape) if isinstance(value, torch.Tensor) else ()
        for size in sizes:
            if isinstance(size, torch.SymInt):
                size.node.shape_env.deferred_runtime_asserts.clear()
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and any(name in str(node.target) for name in ASSERTIONS):
            graph.erase_node(node)


def _spell_masks(graph: torch.fx.Graph) -> None:
    """Write ``x[mask] = number`` as the fill that it is; ExecuTorch 1.4.1's kernel for indices refuses masks."""
    aten = torch.ops.aten
    fills = {aten.index_put.default: aten.masked_fill.Tensor, aten.index_put_.default: aten.masked_fill_.Tensor}
    for node in graph.nodes:
        if node.target not in fills or len(node.args[1]) != 1 or any(node.args[3:]):
            continue
        given: Any = node.args
        tensor, (mask,), number = given[:3]
        whole = mask.meta["val"].dtype == torch.bool and mask.meta["val"].dim() == tensor.meta["val"].dim()
        if whole and number.meta["val"].dim() == 0:
            node.target, node.args = fills[node.target], (tensor, mask, number)


def _spell_gelu(graph: torch.fx.Graph) -> None:
    """Write the tanh form of gelu in single operators, in whose kernels nothing is left out.

    XNNPACK's delegate serializes ``gelu`` without its ``approximate`` (backends/xnnpack/operators/op_gelu.py) and computes
    the erf form for both: off by 1e-3.
    """
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.gelu.default and node.kwargs.get("approximate", "none") == "tanh":
            replace(graph, node, _tanh_gelu)


def _center_norms(graph: torch.fx.Graph) -> None:
    """Take the mean from what a norm of a layer, group or instance reads, which its result does not depend on.

    ExecuTorch 1.4.1 loses a variance that is small beside the mean, as E[x^2] - E[x]^2 does: rows of mean 30 and deviation
    0.01 come out off by 0.59 (tests/targets/executorch/test_norms.py).
    """
    aten = torch.ops.aten
    forms = {
        aten.layer_norm.default: _centered_norm,
        aten.group_norm.default: _centered_groups,
        aten.instance_norm.default: _centered_instances,
    }
    for node in list(graph.nodes):
        if node.target in forms and not node.meta.get(CENTERED):
            node.meta[CENTERED] = True
            replace(graph, node, forms[node.target])


def _centered_groups(call: Callable[..., Any], x: Any, groups: int, *rest: Any) -> Any:
    aten = torch.ops.aten
    apart = call(aten.unflatten.int, x, 1, [groups, -1])
    mean = call(aten.mean.dim, apart, list(range(2, apart.meta["val"].dim())), True)
    centered = call(aten.flatten.using_ints, call(aten.sub.Tensor, apart, mean), 1, 2)
    return call(aten.group_norm.default, centered, groups, *rest)


def _centered_instances(call: Callable[..., Any], x: Any, *rest: Any) -> Any:
    aten = torch.ops.aten
    mean = call(aten.mean.dim, x, list(range(2, x.meta["val"].dim())), True)
    return call(aten.instance_norm.default, call(aten.sub.Tensor, x, mean) if rest[4] else x, *rest)


def _centered_norm(call: Callable[..., Any], x: Any, shape: Any, *rest: Any) -> Any:
    aten = torch.ops.aten
    mean = call(aten.mean.dim, x, list(range(-len(shape), 0)), True)
    return call(aten.layer_norm.default, call(aten.sub.Tensor, x, mean), shape, *rest)


def _tanh_gelu(call: Callable[..., Any], x: Any, *_: Any) -> Any:
    """0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel, 2016)."""
    aten = torch.ops.aten
    cube = call(aten.mul.Tensor, call(aten.mul.Tensor, x, x), x)
    inner = call(aten.add.Tensor, x, call(aten.mul.Tensor, cube, 0.044715))
    curve = call(aten.tanh.default, call(aten.mul.Tensor, inner, math.sqrt(2 / math.pi)))
    return call(aten.mul.Tensor, call(aten.mul.Tensor, x, 0.5), call(aten.add.Tensor, curve, 1.0))


def _spell_attention(graph: torch.fx.Graph) -> None:
    """Write attention as two products of matrices, one bias for each mask, and a softmax.

    ExecuTorch's own decomposition guards every layer against rows without keys, in nine operators for which XNNPACK has
    no kernel. Here such rows are found once for each mask, and take zeros as torch gives them.
    """
    biases: dict[torch.fx.Node, tuple[Any, Any]] = {}
    for node in list(graph.nodes):
        if node.target is torch.ops.aten.scaled_dot_product_attention.default and _is_plain(node):
            replace(graph, node, lambda call, *args, node=node: _attention(call, node, biases))


def _is_plain(node: torch.fx.Node) -> bool:
    """No causal flag, no dropout, as many key heads as query heads, float32."""
    rest = [*node.args[4:], *(node.kwargs.get(name) for name in ("dropout_p", "is_causal", "enable_gqa"))]
    heads = {argument.meta["val"].shape[1] for argument in node.args[:3] if isinstance(argument, torch.fx.Node)}
    value = node.meta["val"]
    return not any(rest) and len(heads) == 1 and len(value.shape) == 4 and value.dtype == torch.float32


def _attention(call: Callable[..., Any], node: torch.fx.Node, biases: dict[torch.fx.Node, tuple[Any, Any]]) -> Any:
    """softmax(query key^T scale + bias) value over (batch, heads, query, head_size), heads folded into the batch."""
    aten = torch.ops.aten
    query, key, value = node.args[:3]
    mask = node.args[3] if len(node.args) > 3 else node.kwargs.get("attn_mask")
    scale = node.kwargs.get("scale") or query.meta["val"].shape[-1] ** -0.5  # type: ignore[union-attr]
    sizes = [_size(call, query, axis) for axis in range(3)]
    keys = _size(call, key, 2)
    folded = [call(aten.flatten.using_ints, tensor, 0, 1) for tensor in (query, key, value)]
    scores = call(aten.bmm.default, call(aten.mul.Tensor, folded[0], scale), call(aten.transpose.int, folded[1], 1, 2))
    bias, alive = (None, None) if mask is None else _bias(call, mask, biases)
    if bias is not None:
        scores = call(aten.view.default, scores, [*sizes, keys])
        scores = call(aten.add.Tensor, scores, bias)
        scores = call(aten.flatten.using_ints, scores, 0, 1)
    shares = call(aten.softmax.int, scores, -1)
    mixed = call(aten.bmm.default, shares, folded[2])
    result = call(aten.view.default, mixed, [*sizes, value.meta["val"].shape[-1]])  # type: ignore[union-attr]
    return result if alive is None else call(aten.mul.Tensor, result, alive)


def _size(call: Callable[..., Any], tensor: Any, axis: int) -> Any:
    length = tensor.meta["val"].shape[axis]
    return call(torch.ops.aten.sym_size.int, tensor, axis) if isinstance(length, torch.SymInt) else length


def _bias(call: Callable[..., Any], mask: Any, biases: dict[torch.fx.Node, tuple[Any, Any]]) -> tuple[Any, Any]:
    """What is added to the scores, and the rows that see a key at all, both made once for all layers.

    Returns:
        Of a boolean mask, (batch, 1, query, keys): 0 where a key may be seen and the lowest number elsewhere, and
        1 or 0 by row, (batch, 1, query, 1). A float mask is the bias itself.
    """
    if mask.meta["val"].dtype != torch.bool:
        return mask, None
    if mask not in biases:
        aten = torch.ops.aten
        seen = call(aten.any.dim, mask, -1, True)
        bias = call(aten.where.Scalar, mask, 0.0, torch.finfo(torch.float32).min)
        biases[mask] = bias, call(aten.where.Scalar, seen, 1.0, 0.0)
    return biases[mask]
