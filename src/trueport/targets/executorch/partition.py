"""Which operators XNNPACK takes, decided before the lowering takes them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from executorch.backends.xnnpack.partition.config import ALL_PARTITIONER_CONFIGS
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir.backend.canonical_partitioners.config_partitioner import format_target_name
from torch.fx.passes.infra.partitioner import Partition

KERNELS = {entry.__name__.removesuffix("Config"): entry for entry in ALL_PARTITIONER_CONFIGS}
"""The partitioner's configurations, one for each kind of operator that XNNPACK runs, by name."""
Accepts = Callable[[torch.fx.Node], bool]


class Partitioner(XnnpackPartitioner):
    """XNNPACK's partitioner, which names the operators to keep whole instead of judging them in the middle.

    ExecuTorch traces a program again for every run of decompositions. A partitioner that judges node by node costs one
    run more than one that only names operators; where it would take every node of an operator, names say the same.

    Attributes:
        taken: names of the KERNELS that run a node of the programs partitioned so far.
    """

    def __init__(self, kernels: Sequence[str]) -> None:
        super().__init__(configs=[KERNELS[name] for name in kernels])
        self.taken: set[str] = set()

    def generate_partitions(self, ep: torch.export.ExportedProgram) -> list[Partition]:
        """Groups of nodes that XNNPACK runs as one."""
        partitions: list[Partition] = super().generate_partitions(ep)
        called: list[Any] = [n.target for part in partitions for n in part.nodes if n.op == "call_function"]
        for target in {format_target_name(operator.__name__) for operator in called}:
            if target in self.target_partitioner_configs:
                self.taken.add(type(self.target_partitioner_configs[target]).__name__.removesuffix("Config"))
        return partitions

    def ops_to_not_decompose(
        self, ep: torch.export.ExportedProgram
    ) -> tuple[list[torch._ops.OpOverload], Accepts | None]:
        """Operators that are not taken apart, and what decides about a node where XNNPACK takes only some."""
        told: tuple[list[Any], Accepts] = super().ops_to_not_decompose(ep)
        targets, accepts = told
        present = [node for node in ep.graph.nodes if node.op == "call_function" and node.target in targets]
        if all(accepts(node) for node in present):
            return list({node.target: None for node in present}), None
        return told
