"""Groups that XNNPACK runs: found and taken out as ExecuTorch itself does it."""

from __future__ import annotations

import operator
from collections import defaultdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx

pytest.importorskip("executorch")


@st.composite
def graphs(draw: st.DrawFn) -> fx.GraphModule:
    """Of a few operators, some of them on sizes; some nodes moved to where they read what comes later."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"p{index}") for index in range(draw(st.integers(1, 3)))]
    for _ in range(draw(st.integers(1, 12))):
        target = draw(st.sampled_from([torch.ops.aten.add.Tensor, operator.add, torch.add, operator.mul]))
        read = draw(st.lists(st.sampled_from(nodes), min_size=2, max_size=2))
        nodes.append(graph.call_function(target, tuple(read)))
    graph.output(tuple(nodes[-2:]))
    module = fx.GraphModule(torch.nn.Module(), graph)
    for number, node in enumerate(graph.nodes):
        node.meta["number"] = number
    for node in draw(st.lists(st.sampled_from(nodes), max_size=4)):
        next(iter(graph.nodes)).prepend(node)
    return module


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(module=graphs())
def test_nodes_are_in_the_order_that_torch_puts_them_in(module: fx.GraphModule) -> None:
    from torch.fx.passes.tools_common import legalize_graph

    from trueport.targets.executorch.grouping import sort

    theirs = fx.GraphModule(torch.nn.Module(), fx.Graph())
    mapping: dict[fx.Node, fx.Node] = {}
    for node in module.graph.nodes:  # copying a graph wants an order
        mapping[node] = theirs.graph.create_node(node.op, node.target)
        mapping[node].meta.update(node.meta)
    for node, twin in sorted(mapping.items(), key=lambda pair: pair[0].meta["number"]):  # so are a node's users
        twin.args = fx.node.map_arg(node.args, mapping.__getitem__)
    legalize_graph(theirs)
    orders = [[node.meta["number"] for node in made.graph.nodes] for made in (sort(module), theirs)]
    assert orders[0] == orders[1]
    module.graph.lint()
    module.recompile()


def test_a_circle_is_told() -> None:
    from trueport.targets.executorch.grouping import sort

    graph = fx.Graph()
    first = graph.call_function(torch.relu, (graph.placeholder("x"),))
    second = graph.call_function(torch.relu, (first,))
    first.args = (second,)
    graph.output(second)
    with pytest.raises(RuntimeError, match="circle"):
        sort(fx.GraphModule(torch.nn.Module(), graph))


@settings(max_examples=200, deadline=None)
@given(module=graphs(), data=st.data())
def test_the_same_groups_may_be_merged(module: fx.GraphModule, data: st.DataObject) -> None:
    from executorch.exir.backend.canonical_partitioners import group_partitioner
    from torch.fx.passes.infra.partitioner import Partition

    from trueport.targets.executorch.grouping import Followers, mergeable, sort

    nodes = [node for node in sort(module).graph.nodes if node.op == "call_function"]
    chosen = data.draw(st.lists(st.integers(0, 2), min_size=len(nodes), max_size=len(nodes)))
    groups: dict[int, list[fx.Node]] = defaultdict(list)
    for node, number in zip(nodes, chosen, strict=True):
        groups[number].append(node)
    partitions = {number: Partition(number, groups[number]) for number in range(3)}
    partitioner = group_partitioner.GroupBasedPartitioner.__new__(group_partitioner.GroupBasedPartitioner)
    partitioner.dependency_viewer = group_partitioner._DependencyViewer(module)
    theirs = partitioner._can_merge_partitions(0, 1, partitions)
    partitioner.dependency_viewer = Followers(module)
    assert mergeable(partitioner, 0, 1, partitions) == theirs


@settings(max_examples=200, deadline=None)
@given(module=graphs())
def test_what_follows_a_node_is_what_torch_says(module: fx.GraphModule) -> None:
    from torch.fx.passes.infra.partitioner import _DependencyViewer

    from trueport.targets.executorch.grouping import Followers, sort

    theirs, ours = _DependencyViewer(sort(module)), Followers(module)
    assert all(ours.downstreams_of(node) == theirs.downstreams_of(node) for node in module.graph.nodes)
