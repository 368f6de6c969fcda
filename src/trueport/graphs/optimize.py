"""Constant folding and clean-up after conversion."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir

MERGED = 1024
"""Elements of the largest constant that is compared with others."""
ROUNDS = 2
"""How often folding and rewriting alternate; the second round sees what the first one exposed."""


def optimize(model: ir.Model, weights: Collection[str]) -> None:
    """Fold what is constant, drop what is unused; in place.

    The passes are those of ``onnxscript.optimizer.optimize_ir``, in its order, and so is the graph that comes out.
    What differs is the time: its rewriter scans the whole graph for every node, ours looks at a node's operator first.

    Args:
        model: a freshly converted graph.
        weights: names of the initializers that are the model's weights. None is read, and nothing computed from one is
            folded: a folded transpose would be a second copy, and the runtime folds at load anyway.
    """
    from onnx_ir.passes import Sequential
    from onnx_ir.passes import common as passes

    names = set(weights)

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in names for value in node.inputs) else None

    lift = Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.LiftSubgraphInitializersToMainGraphPass(),
    )
    clean_up = Sequential(
        passes.CommonSubexpressionEliminationPass(),
        passes.OutputFixPass(),
        passes.NameFixPass(),
    )
    with warnings.catch_warnings(), _unread(model.graph, names):
        warnings.simplefilter("ignore")
        passes.InlinePass()(model)
        _simplify(model, should_fold)
        lift(model)
        _merge_constants(model.graph, names)
        clean_up(model)


@contextmanager
def _unread(graph: ir.Graph, weights: Collection[str]) -> Iterator[None]:
    """Within, the weights have no values: a rule that drops a bias of zeros would make the graph depend on them."""
    values = [value for name, value in graph.initializers.items() if name in weights]
    tensors = [value.const_value for value in values]
    for value in values:
        value.const_value = None
    try:
        yield
    finally:
        for value, tensor in zip(values, tensors, strict=True):
            value.const_value = tensor


def _merge_constants(graph: ir.Graph, weights: Collection[str]) -> None:
    """One initializer for equal small constants. Weights are not read: a graph must not depend on their values."""
    kept: dict[Any, ir.Value] = {}
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if value.name in weights or tensor is None or tensor.size > MERGED or tensor.dtype == ir.DataType.STRING:
            continue
        if value.is_graph_input() or value.is_graph_output():
            continue
        first = kept.setdefault((tensor.dtype, tuple(tensor.shape.numpy()), tensor.tobytes()), value)
        if first is not value:
            value.replace_all_uses_with(first)
            graph.initializers.pop(str(value.name))


def _simplify(model: ir.Model, should_fold: Any) -> None:
    """Fold and rewrite until nothing changes, ``ROUNDS`` times at most."""
    from onnx_ir.passes import common as passes
    from onnxscript.optimizer import fold_constants_ir
    from onnxscript.rewriter import RewritePass

    for _ in range(ROUNDS):
        steps = [
            fold_constants_ir(model, onnx_shape_inference=True, should_fold=should_fold),
            RewritePass(_rules())(model),
            passes.RemoveUnusedNodesPass()(model),
            passes.RemoveUnusedFunctionsPass()(model),
            passes.RemoveUnusedOpsetsPass()(model),
        ]
        _find_constants(model.graph)
        if not any(step.modified for step in steps):
            break


def _find_constants(graph: ir.Graph) -> None:
    """Register constants that lost their place to another of their name.

    onnxscript's rules name a Clip's bounds after what is clipped: of a tensor that is clipped twice the second bounds
    replace the first.
    """
    for node in ir.traversal.RecursiveGraphIterator(graph):
        for value in node.inputs:
            lost = value is not None and value.producer() is None and value.const_value is not None
            if value is None or not lost or graph.initializers.get(value.name or "") is value:
                continue
            if value.graph is None and not value.is_graph_input():
                number = 1
                while f"{value.name}_{number}" in graph.initializers:
                    number += 1
                value.name = f"{value.name}_{number}"
                graph.register_initializer(value)


@functools.cache
def _rules() -> tuple[Any, ...]:
    """onnxscript's default rules, each behind a look at the operators that it needs."""
    from onnxscript import rewriter

    return tuple(_prefiltered(rule) for rule in rewriter._DEFAULT_REWRITE_RULES)


def _prefiltered(rule: Any) -> Any:
    """The rule, tried only on nodes at which its pattern can end."""
    patterns = rule._target_pattern.output_nodes  # the matcher starts at the first, for several too
    wanted = patterns[0].op_identifier()
    if wanted is None:
        return rule
    first = wanted[:2]
    rule = copy.copy(rule)
    full = rule.try_rewrite

    def try_rewrite(model: ir.Model, graph: Any, node: ir.Node, **options: Any) -> Any:
        if (node.domain, node.op_type) != first:
            return None
        return full(model, graph, node, **options)

    rule.try_rewrite = try_rewrite
    return rule
