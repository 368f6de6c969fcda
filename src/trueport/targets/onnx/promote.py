"""Casts where an operator's operands have several dtypes, without running the program again.

``torch.onnx`` runs the whole program under fake tensors to learn its operands' dtypes. A captured program knows them: each
node's value is noted with it. Only a node whose operands are cast is run again, by torch's own code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def promoted(plainly: Callable[[torch.fx.GraphModule], None], module: torch.fx.GraphModule) -> None:
    """Put torch's casts in, in place.

    Args:
        plainly: torch's own pass.
        module: the program's graph, and those nested in it.
    """
    try:
        from torch.onnx._internal.fx.passes import type_promotion

        interpreter = _interpreter(type_promotion)
        passes = [type_promotion.InsertTypePromotion(part) for part in module.modules()]  # type: ignore[arg-type]
        for found in passes:
            found.interpreter = interpreter(found.module, found.interpreter.type_promotion_table)
    except (ImportError, AttributeError):  # torch moved them
        plainly(module)
        return
    for found in passes:
        names = [value.name for value in _given(found.module.graph)]
        found.run()
        _under_names(found.module.graph, names)


def _given(graph: torch.fx.Graph) -> list[torch.fx.Node]:
    return list(graph.output_node().all_input_nodes)


def _under_names(graph: torch.fx.Graph, names: list[str]) -> None:
    """Let the casts that are given out have the names of what they cast: torch finds a program's outputs by them."""
    nodes = {node.name: node for node in graph.nodes}
    for cast, name in zip(_given(graph), names, strict=True):
        if cast.name == name:
            continue
        named = nodes[name]
        with graph.inserting_before(named):
            computed = graph.node_copy(named, lambda operand: operand)
        named.target, named.args, named.kwargs = cast.target, (computed,), cast.kwargs
        named.meta = cast.meta
        cast.replace_all_uses_with(named)
        graph.erase_node(cast)


def _interpreter(type_promotion: Any) -> Any:
    class Knowing(type_promotion._TypePromotionInterpreter):  # type: ignore[misc]
        """Torch's, for which a node's value is the one that is noted."""

        def run_node(self, node: torch.fx.Node) -> Any:
            """Cast the operands where there is a rule; a node that changes is run, and noted, by ``super``'s helpers."""
            if node.op != "call_function" or "val" not in node.meta:
                return super().run_node(node)
            rule = type_promotion.get_type_promotion_rule(node, self.type_promotion_table)
            if rule:
                with self._set_current_node(node):
                    self._maybe_promote_node(node, rule)
            return node.meta["val"]

    return Knowing
