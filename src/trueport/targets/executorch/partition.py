"""Which operators XNNPACK takes, decided before the lowering takes them apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from executorch.backends.xnnpack.partition.config import (
    ALL_PARTITIONER_CONFIGS,
    gemm_configs,
    generic_node_configs,
    node_configs,
)
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.utils.utils import is_param_node
from executorch.exir.backend.canonical_partitioners.config_partitioner import format_target_name
from executorch.exir.graph_module import get_control_flow_submodules
from torch.fx.passes.infra.partitioner import Partition


def _reshapes(*nodes: torch.fx.Node) -> bool:
    """Whether XNNPACK can reshape to all of these: it serves one dynamic dimension."""
    return all(sum(not isinstance(size, int) for size in node.meta["val"].shape) <= 1 for node in nodes)


class UnsqueezeCopyConfig(generic_node_configs.UnsqueezeCopyConfig):  # type: ignore[misc]
    """An unsqueeze is a reshape to XNNPACK, which the configuration forgets."""

    def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
        """Whether XNNPACK takes the node."""
        return _reshapes(node) and bool(super().check_constraints(node, ep))


class ConvolutionConfig(gemm_configs.ConvolutionConfig):  # type: ignore[misc]
    """A convolution over one axis becomes one over two, between two reshapes."""

    def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
        """Whether XNNPACK takes the node."""
        single = len(node.args[3]) == 1  # type: ignore[arg-type]  # the stride
        fits = not single or _reshapes(node, node.args[0])  # type: ignore[arg-type]
        return fits and bool(super().check_constraints(node, ep))


class BatchNormConfig(node_configs.BatchNormConfig):  # type: ignore[misc]
    """A norm over batches becomes a convolution, between two reshapes where its input has less than four axes."""

    def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
        """Whether XNNPACK takes the node."""
        given: Any = node.args[0]
        fits = given.meta["val"].dim() > 3 or _reshapes(given)
        return fits and bool(super().check_constraints(node, ep))


class ConstantPadConfig(generic_node_configs.ConstantPadConfig):  # type: ignore[misc]
    """The delegate is written as JSON, which knows no infinity."""

    def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
        """Whether XNNPACK takes the node."""
        value: Any = node.args[2] if len(node.args) > 2 else 0.0
        return math.isfinite(value) and bool(super().check_constraints(node, ep))


class CloneDimOrderConfig(generic_node_configs.CloneDimOrderConfig):  # type: ignore[misc]
    """XNNPACK leaves copies out, and then refuses a delegate that gives out what it was given: a loop's state, copied."""

    def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
        """Whether XNNPACK takes the node."""
        leaves = any(isinstance(user.target, torch._ops.HigherOrderOperator) for user in node.users)
        return not leaves and bool(super().check_constraints(node, ep))


class UpsampleBilinear2dConfig(generic_node_configs.UpsampleBilinear2dConfig):  # type: ignore[misc]
    """XNNPACK's steps are the sizes' ratio; torch's are the factor's, which a size that was cut off does not tell."""

    def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
        """Whether XNNPACK takes the node."""
        if not super().check_constraints(node, ep):  # asks for constant sizes, which alone may be compared
            return False
        given: Any = node.args[0]
        factors: Any = node.args[3] if len(node.args) > 3 else None
        sizes = zip(given.meta["val"].shape[2:], factors or (), node.meta["val"].shape[2:], strict=False)
        return all(size * factor == wanted for size, factor, wanted in sizes)


class MaxDimConfig(node_configs.MaxDimConfig):  # type: ignore[misc]
    """A largest along an axis becomes a pooling, whose window has one size, along one of the last two of four axes."""

    def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
        """Whether XNNPACK takes the node."""
        given, axis, *kept = node.args
        shape = given.meta["val"].shape  # type: ignore[union-attr]
        pooled = len(shape) == 4 and axis in (2, 3) and kept == [True] and isinstance(shape[axis], int)  # type: ignore[index]
        return pooled and bool(super().check_constraints(node, ep))


MENDED = {
    entry.__name__: entry
    for entry in (
        UnsqueezeCopyConfig,
        ConvolutionConfig,
        BatchNormConfig,
        ConstantPadConfig,
        CloneDimOrderConfig,
        UpsampleBilinear2dConfig,
        MaxDimConfig,
    )
}
"""Configurations that take nodes which XNNPACK's own passes then refuse, or change (executorch 1.4.1), asking in time."""
PACKING = {
    "linear.default", "addmm.default", "mm.default", "convolution.default", "prelu.default",
    "_native_batch_norm_legit_no_training.default",
}  # fmt: skip
"""Operators whose weights XNNPACK packs when it loads them."""
BROADCASTING = {"add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum.default", "minimum.default"}
"""Operators that repeat an operand, whose result XNNPACK may write over one."""


def _apart(entry: Any) -> Any:
    """A configuration that leaves alone what reads a packed weight by itself, and what outgrows an operand.

    The delegate of executorch 1.4.1 gives a weight's bytes back once they are packed; what else in it reads them reads freed
    memory.
    """
    if not issubclass(entry, generic_node_configs.GenericNodePartitionerConfig):
        return entry

    class Apart(entry):  # type: ignore[misc]
        def check_constraints(self, node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
            spoiled = _reads_packed(node, ep) or _outgrows(node)
            return not spoiled and bool(super().check_constraints(node, ep))

    Apart.__name__ = Apart.__qualname__ = entry.__name__
    return Apart


def _reads_packed(node: torch.fx.Node, ep: torch.export.ExportedProgram) -> bool:
    """Whether a weight that another operator packs is read here too, and not only spelled for it, as transposed."""
    weights = [given for given in node.all_input_nodes if len(given.users) > 1 and is_param_node(ep, given)]
    return any(map(_packs, (user for weight in weights for user in weight.users))) and not _packs(node)


def _outgrows(node: torch.fx.Node) -> bool:
    """Whether a result is as large as an operand made in the program at some sizes, and larger at others.

    Where XNNPACK sees them equal at the first call, it writes the result over the operand, and goes on to when it is larger:
    ``sigmoid(x * y.exp())`` of x (batch, 64, length) and y (batch, 64, 1) is wrong from the second length on, and the heap
    is torn (tests/targets/executorch/test_sizes.py).
    """
    if node.op != "call_function" or format_target_name(getattr(node.target, "__name__", "")) not in BROADCASTING:
        return False
    made = [given for given in node.all_input_nodes if given.op == "call_function"]
    return any(_may_equal(given.meta["val"].shape, node.meta["val"].shape) for given in made)


def _may_equal(operand: Sequence[Any], result: Sequence[Any]) -> bool:
    """Whether an operand is repeated to its result's shape, and only along axes that may be 1."""
    own = [1] * (len(result) - len(operand)) + list(operand)
    repeated = [size for size, one in zip(result, own, strict=True) if str(size) != str(one)]
    return bool(repeated) and not any(isinstance(size, int) for size in repeated)


def _packs(node: torch.fx.Node) -> bool:
    """Whether an operator packs its weights, or only spells one for operators that do."""
    if node.op != "call_function":
        return False
    if format_target_name(getattr(node.target, "__name__", "")) in PACKING:
        return True
    return len(node.all_input_nodes) == 1 and bool(node.users) and all(map(_packs, node.users))


def _is_single(node: torch.fx.Node) -> bool:
    """Whether a product is of one matrix with one other, not of many small ones."""
    return all(given.meta["val"].shape[0] == 1 for given in node.all_input_nodes)


KERNELS = {
    entry.__name__.removesuffix("Config"): _apart(MENDED.get(entry.__name__, entry))
    for entry in ALL_PARTITIONER_CONFIGS
}
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
        partitions += self._products(ep, ep.graph_module, len(partitions))
        called: list[Any] = [n.target for part in partitions for n in part.nodes if n.op == "call_function"]
        for target in {format_target_name(operator.__name__) for operator in called}:
            if target in self.target_partitioner_configs:
                self.taken.add(type(self.target_partitioner_configs[target]).__name__.removesuffix("Config"))
        return partitions

    def _products(self, ep: torch.export.ExportedProgram, module: torch.fx.GraphModule, first: int) -> list[Partition]:
        """Products of matrices in loops and branches, each a group of its own; the rest of a body is small."""
        found: list[Partition] = []
        for _, body, _ in get_control_flow_submodules(module):
            for node in body.graph.nodes:
                config = self.target_partitioner_configs.get(format_target_name(getattr(node.target, "__name__", "")))
                if isinstance(config, KERNELS["BMM"]) and _is_single(node) and config.check_constraints(node, ep):
                    found.append(Partition(id=first + len(found), nodes=[node]))
            found += self._products(ep, body, first + len(found))
        return found

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
