"""What a program's memory costs, and which dimension's bound makes it so."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from trueport.errors import LoweringError
from trueport.interface import DTYPES, Interface, Tensor
from trueport.words import size_words

if TYPE_CHECKING:
    from executorch.exir import ExecutorchProgramManager

LARGEST_ARENA = 2 * 1024**3
"""Bytes that a program may plan unless the user allows more."""
FLAGS = {"batch_size": "--max-batch"}
"""The flag that bounds a dimension; ``--max-length`` bounds all others."""


@dataclass(frozen=True)
class Plan:
    """The planned memory of one method.

    Attributes:
        arena: bytes that the runtime allocates for activations and caches.
        kept: bytes of it that caches take.
        dimensions: bytes of the arena that half of a dimension's bound would save, by dimension.
    """

    arena: int
    kept: int
    dimensions: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """As the manifest stores it."""
        return {"arena": self.arena, "kept": self.kept, "saved_by_half": self.dimensions}


def measure(program: ExecutorchProgramManager, method: str, interface: Interface) -> Plan:
    """The plan of one method of a lowered program."""
    plan = next(entry for entry in program.executorch_program.execution_plan if entry.name == method)
    arena = int(sum(plan.non_const_buffer_sizes))
    kept = _size(interface.kept)
    graph = program.exported_program(method).graph_module.graph
    # The caches are alive all the time, and no activation's bound changes them.
    whole = _peak(graph, {}) - kept
    saved = {}
    for dimension in interface.dimensions:
        symbols = _symbols(graph, interface, dimension.name)
        if dimension.maximum is not None and dimension.maximum > 1 and symbols:
            half = dimension.maximum // 2
            share = 1 - (_peak(graph, dict.fromkeys(symbols, half)) - kept) / whole if whole else 0.0
            saved[dimension.name] = int((arena - kept) * share) + _kept_share(interface, dimension.name)
    return Plan(arena, kept, saved)


def _size(tensors: Iterable[Tensor]) -> int:
    return sum(DTYPES[tensor.dtype] * math.prod(map(int, tensor.shape)) for tensor in tensors)


def _kept_share(interface: Interface, name: str) -> int:
    """Half of the caches that are as long as a dimension."""
    kept = _size(interface.kept)
    if name == "past_sequence_length":
        kept -= _size(interface.kept_states)
    return kept // 2 if name in ("batch_size", "past_sequence_length") else 0


def _symbols(graph: torch.fx.Graph, interface: Interface, name: str) -> set[str]:
    """The symbols that stand for a dimension in the program's inputs."""
    shapes = {tensor.name: tensor.shape for tensor in interface.inputs}
    found: set[str] = set()
    values = [n.meta.get("val") for n in graph.nodes if n.op == "placeholder"]
    all_sizes: list[tuple[Any, ...]] = [tuple(v.shape) for v in values if isinstance(v, torch.Tensor)]
    dynamic = [sizes for sizes in all_sizes if any(isinstance(size, torch.SymInt) for size in sizes)]
    named = [shape for shape in shapes.values() if any(isinstance(axis, str) for axis in shape)]
    for sizes, shape in zip(dynamic, named, strict=False):
        for size, axis in zip(sizes, shape, strict=True):
            # The bound of a past is the bound of the sum that it is part of.
            if isinstance(size, torch.SymInt) and (axis == name or (name.startswith("past") and name in str(axis))):
                found |= {str(symbol) for symbol in size.node.expr.free_symbols}
    return found


def _peak(graph: torch.fx.Graph, bounds: Mapping[str, int]) -> int:
    """Bytes alive at once at the most, each tensor at its upper bound or at that of ``bounds``."""
    changes: dict[int, int] = {}
    for node in graph.nodes:
        spec, value = node.meta.get("spec"), node.meta.get("val")
        lifetime = getattr(spec, "lifetime", None)
        if not lifetime or lifetime[0] is None or not isinstance(value, torch.Tensor):
            continue
        size = _bytes(value, bounds)
        changes[lifetime[0]] = changes.get(lifetime[0], 0) + size
        changes[lifetime[1] + 1] = changes.get(lifetime[1] + 1, 0) - size
    peak = alive = 0
    for moment in sorted(changes):
        alive += changes[moment]
        peak = max(peak, alive)
    return peak


def _bytes(value: torch.Tensor, bounds: Mapping[str, int]) -> int:
    size = value.element_size()
    lengths: tuple[Any, ...] = tuple(value.shape)
    for length in lengths:
        size *= _upper(length, bounds) if isinstance(length, torch.SymInt) else int(length)
    return size


def _upper(length: torch.SymInt, bounds: Mapping[str, int]) -> int:
    expression, env = length.node.expr, length.node.shape_env
    at = {s: bounds.get(str(s), int(env.var_to_range[s].upper)) for s in expression.free_symbols}
    return max(int(expression.subs(at)), 0)


def check_arena(plans: Mapping[str, Plan], largest: int | None) -> None:
    """Refuse a program that plans more memory than allowed.

    Raises:
        LoweringError: it does; the message names the dimension whose bound saves most.
    """
    limit = LARGEST_ARENA if largest is None else largest
    for method, plan in plans.items():
        if plan.arena <= limit:
            continue
        name = max(plan.dimensions, key=lambda key: plan.dimensions[key], default="")
        flag = FLAGS.get(name, "--max-length")
        raise LoweringError(
            f"The method {method} plans {size_words(plan.arena)} of memory, more than {size_words(limit)}",
            f"Lower {flag} ({name}: half of it saves {size_words(plan.dimensions.get(name, 0))}), or raise --max-arena.",
        )
