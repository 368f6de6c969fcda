"""Memory planning in which the results of branches live on, and loops take no more than one of them holds."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from executorch.exir.memory_planning import (
    MemoryPlanningAlgorithmSuite,
    get_cond_nodes,
    get_map_nodes,
    get_scan_nodes,
)
from executorch.exir.passes import MemoryPlanningPass


class ApartAlgorithm(MemoryPlanningAlgorithmSuite):  # type: ignore[misc]
    """ExecuTorch's own algorithm, each branch in bytes of its own, and the loops of one graph in the same.

    ExecuTorch 1.4.1 plans the branches of all conds over the same bytes and hands their results out where they lie
    (exir/memory_planning.py, _apply_algo_to_submodules): the next cond's branch writes over them, in silence. What a loop's
    body makes is copied out at each turn. What it reads of its own graph it plans memory for, too, which nobody uses: the
    weights of all experts, again.

    Args:
        module: the outermost graph.

    Attributes:
        end: bytes that the graphs planned so far take; inner graphs come first.
    """

    def __init__(self, module: torch.fx.GraphModule) -> None:
        super().__init__()
        self.end = 0
        self._bound: set[int] = set()
        self._opens: dict[torch.fx.GraphModule, list[torch.fx.GraphModule]] = defaultdict(list)
        self._start: dict[torch.fx.GraphModule, int] = {}
        self._largest: dict[torch.fx.GraphModule, int] = {}
        self._look(module)

    def _look(self, module: torch.fx.GraphModule) -> None:
        """Find the loops, by the graph of their bodies that is planned first, and what is bound in them already."""
        for node in get_scan_nodes(module):
            body = _inner(module, node.args[0])
            self._opens[_first(body)].append(module)
            carried, count = len(node.args[1]), len(node.args[2])  # type: ignore[arg-type]
            given = body.graph.find_nodes(op="placeholder")
            bound = (*given[:carried], *given[carried + count :])
            self._bound.update(id(place.meta["spec"]) for place in bound if "spec" in place.meta)
        for inner in _graphs(module):
            self._look(inner)

    def __call__(
        self, alignment: int, specs: Any, graph_module: torch.fx.GraphModule, signature: Any, extra_padding: int
    ) -> list[int]:
        """Offsets into the specs of one graph; the sizes of the constants' and of the activations' memory."""
        for outer in self._opens[graph_module]:
            self._largest[outer] = max(self._largest.get(outer, 0), self.end)
            self.end = self._start.setdefault(outer, self.end)
        self.end = max(self.end, self._largest.get(graph_module, 0))
        if self.end:
            graph_module.input_mem_buffer_sizes = [0, self.end]  # type: ignore[assignment]
        made = type(specs)(spec for spec in specs if id(spec) not in self._bound)
        sizes: list[int] = super().__call__(alignment, made, graph_module, signature, extra_padding)
        self.end = max(self.end, sizes[1])
        return [sizes[0], self.end, *sizes[2:]]


def _inner(module: torch.fx.GraphModule, place: Any) -> torch.fx.GraphModule:
    found = getattr(module, place.target)
    assert isinstance(found, torch.fx.GraphModule)
    return found


def _graphs(module: torch.fx.GraphModule) -> Iterator[torch.fx.GraphModule]:
    """The branches and bodies of a graph in the order in which ExecuTorch plans them."""
    for node in get_cond_nodes(module):
        yield from (_inner(module, place) for place in node.args[1:3])
    for node in (*get_map_nodes(module), *get_scan_nodes(module)):
        yield _inner(module, node.args[0])


def _first(module: torch.fx.GraphModule) -> torch.fx.GraphModule:
    """The graph that is planned first, of a graph and those within it."""
    inner = next(_graphs(module), None)
    return module if inner is None else _first(inner)


class PlanningPass(MemoryPlanningPass):  # type: ignore[misc]
    """Plans one method after the other, each in memory of its own; inputs stay in the caller's."""

    def __init__(self) -> None:
        super().__init__(alloc_graph_input=False, alloc_graph_output=True)

    def run(self, graph_module: torch.fx.GraphModule, graph_signature: Any = None) -> Any:
        """Plan one method."""
        self.memory_planning_algo = ApartAlgorithm(graph_module)
        return super().run(graph_module, graph_signature)
