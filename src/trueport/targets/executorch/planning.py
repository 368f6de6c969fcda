"""Memory planning in which the results of branches live on."""

from __future__ import annotations

from typing import Any

import torch
from executorch.exir.memory_planning import MemoryPlanningAlgorithmSuite
from executorch.exir.passes import MemoryPlanningPass


class ApartAlgorithm(MemoryPlanningAlgorithmSuite):  # type: ignore[misc]
    """ExecuTorch's own algorithm, each branch and loop body in bytes of its own.

    ExecuTorch 1.4.1 plans the branches of all conds over the same bytes and hands their results out where they lie
    (exir/memory_planning.py, _apply_algo_to_submodules): the next cond's branch writes over them, in silence.

    Attributes:
        end: bytes that the graphs planned so far take; inner graphs come first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.end = 0

    def __call__(
        self, alignment: int, specs: Any, graph_module: torch.fx.GraphModule, signature: Any, extra_padding: int
    ) -> list[int]:
        """Offsets into the specs of one graph; the sizes of the constants' and of the activations' memory."""
        if self.end:
            graph_module.input_mem_buffer_sizes = [0, self.end]  # type: ignore[assignment]
        sizes: list[int] = super().__call__(alignment, specs, graph_module, signature, extra_padding)
        self.end = max(self.end, sizes[1])
        return [sizes[0], self.end, *sizes[2:]]


class PlanningPass(MemoryPlanningPass):  # type: ignore[misc]
    """Plans one method after the other, each in memory of its own; inputs stay in the caller's."""

    def __init__(self) -> None:
        super().__init__(memory_planning_algo=ApartAlgorithm(), alloc_graph_input=False, alloc_graph_output=True)

    def run(self, graph_module: torch.fx.GraphModule, graph_signature: Any = None) -> Any:
        """Plan one method."""
        self.memory_planning_algo = ApartAlgorithm()
        return super().run(graph_module, graph_signature)
