"""How ExecuTorch finds what XNNPACK runs and takes it out of a program, in a time that grows with the program.

For each node it holds the set of all that follow it, for each pair of groups it walks over these, and for each group that it
takes out it writes the whole program anew: more than half of a lowering at 24 layers. The groups and their order are the
same here.
"""

from __future__ import annotations

import functools
import operator
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch.fx.passes.utils.fuser_utils import validate_partition

from trueport.patches.context import applied_where_there
from trueport.patches.patch import Patch

_aten = torch.ops.aten
FIRST = {
    operator.add, operator.mul, operator.sub, operator.floordiv, operator.truediv, operator.mod,
    operator.le, operator.lt, operator.ge, operator.gt, operator.eq, operator.ne,
    _aten.sym_constrain_range.default, _aten.sym_constrain_range_for_size.default, _aten.scalar_tensor.default,
    _aten._assert_async.msg, _aten._assert_scalar.default,
}  # fmt: skip
"""Sizes and assertions, which torch puts before what does not need them: torch/fx/passes/tools_common.py of 2.13."""


class Followers:
    """What follows each node of a graph, a bit for each node; in place of torch's and ExecuTorch's ``_DependencyViewer``."""

    def __init__(self, module: torch.fx.GraphModule) -> None:
        self.nodes = list(module.graph.nodes)
        self.number = {node: number for number, node in enumerate(self.nodes)}
        self.bits = [0] * len(self.nodes)
        for number in reversed(range(len(self.nodes))):
            for user in self.nodes[number].users:
                self.bits[number] |= self.bits[self.number[user]] | 1 << self.number[user]

    def downstreams_of(self, node: torch.fx.Node) -> set[torch.fx.Node]:
        """All nodes that read a node's result, or what is made of it."""
        bits = self.bits[self.number[node]]
        return {other for number, other in enumerate(self.nodes) if bits >> number & 1}

    def mask(self, nodes: Iterable[torch.fx.Node]) -> int:
        """The bits of nodes."""
        return functools.reduce(operator.or_, (1 << self.number[node] for node in nodes), 0)


def mergeable(partitioner: Any, one: int, other: int, partitions: Any) -> bool:
    """Whether no way leads from two groups of nodes, by their numbers, out and back in."""
    nodes = {*partitions[one].nodes, *partitions[other].nodes}
    outside = {user for node in nodes for user in node.users} - nodes
    viewer: Followers = partitioner.dependency_viewer
    mask = viewer.mask(nodes)
    if any(viewer.bits[viewer.number[node]] & mask for node in outside):
        return False
    return bool(validate_partition(list(nodes)))


def sort(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """Put a graph's nodes in the order that torch's ``legalize_graph`` gives them, in place and without compiling it.

    Raises:
        RuntimeError: the graph has a circle.
    """
    graph = module.graph
    waiting = {node: len(node.all_input_nodes) for node in graph.nodes}
    ready = deque(node for node, count in waiting.items() if not count)
    order = []
    while ready:
        node = ready.popleft()
        order.append(node)
        for user in node.users:
            waiting[user] -= 1
            if not waiting[user]:
                (ready.appendleft if _is_first(user) else ready.append)(user)
    if len(order) < len(waiting):
        raise RuntimeError(f"The graph has a circle through {[node for node, count in waiting.items() if count][:3]}")
    for node in order:
        graph._root.prepend(node)  # to the end
    return module


def _is_first(node: torch.fx.Node) -> bool:
    return node.op == "call_function" and node.target in FIRST


def _patch(path: str, ours: Callable[..., Any]) -> Patch:
    return Patch(
        path, "ExecuTorch takes longer with the square of a program's length", "1.4", lambda _: ours, lambda: []
    )


PATCHES = (
    _patch("torch.fx.passes.infra.partitioner._DependencyViewer", Followers),
    _patch("executorch.exir.backend.canonical_partitioners.group_partitioner._DependencyViewer", Followers),
    _patch(
        "executorch.exir.backend.canonical_partitioners.group_partitioner.GroupBasedPartitioner._can_merge_partitions",
        mergeable,
    ),
    _patch("executorch.exir.lowered_backend_module.legalize_graph", sort),
)


def quickly_grouped() -> AbstractContextManager[None]:
    """Within, ExecuTorch's own are not called where they can be replaced."""
    return applied_where_there(PATCHES)
