"""Sizes at which something that torch took for granted while it traced first fails.

A branch on a size is traced one way. torch keeps what it took for granted, but neither target checks it where it runs: the
proof asks there instead.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import sympy  # type: ignore[import-untyped]
import torch
from sympy.printing.numpy import NumPyPrinter  # type: ignore[import-untyped]

from trueport.interface import Dimension, Interface, terms

FARTHEST = 8192
"""Tokens: the proof asks for no more at once. Of sound a model takes so many samples at least, and as often as many."""
ASKED = 2
"""Sizes up to here are asked whatever torch promises."""
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "FloorDiv": np.floor_divide, "CleanDiv": np.floor_divide, "Mod": np.mod, "PythonMod": np.mod, "IntTrueDiv": np.divide,
    "FloatTrueDiv": np.divide, "CeilDiv": lambda one, by: -(-one // by), "Max": np.maximum, "Min": np.minimum,
    "ToFloat": np.float64, "TruncToInt": np.trunc, "FloorToInt": np.floor, "CeilToInt": np.ceil, "RoundToInt": np.round,
    "PowByNatural": np.power, "ModularIndexing": lambda one, by, most: one // by % most, "Where": np.where,
    "Identity": lambda one: one,
}  # fmt: skip
"""torch's own functions of sizes, over arrays of them."""


class _Printer(NumPyPrinter):
    """sympy's own wants all parts of an ``Or`` to be of one shape."""

    def _print_And(self, promise: sympy.Basic) -> str:
        return " & ".join(f"({self._print(part)})" for part in promise.args)

    def _print_Or(self, promise: sympy.Basic) -> str:
        return " | ".join(f"({self._print(part)})" for part in promise.args)


def placeholders(program: torch.export.ExportedProgram) -> list[torch.fx.Node]:
    """The program's inputs, in their order; no weights."""
    names = set(program.graph_signature.user_inputs)
    return [node for node in program.graph.nodes if node.op == "placeholder" and node.name in names]


def broken(program: torch.export.ExportedProgram, interface: Interface, sizes: Mapping[str, int]) -> set[int]:
    """The smallest size of each dimension at which each promise fails, the others as small as can be.

    Args:
        program: as torch.export gives it, with its guards deferred.
        interface: its inputs, in the program's order.
        sizes: of each dimension, as it was traced.
    """
    axes = _axes(program, interface)
    known = {dimension.name: dimension for dimension in interface.dimensions}
    small = {name: min(size, known[name].minimum if name in known else 0) for name, size in sizes.items()}
    asked = {
        name: np.append(size, np.arange(1, _most(known[name]) + 1)) for name, size in sizes.items() if name in known
    }
    found: set[int] = set()
    for promise in _promises(program, axes):
        holds = _vectorised(promise, list(axes))
        for name in {part for symbol in promise.free_symbols for part in axes[symbol]} & set(asked):
            with suppress(NameError):  # a function of sizes that is not listed: nothing is known of it
                found.update(_first(holds, list(axes.values()), {**small, name: asked[name]}, asked[name]))
    return found


def _most(dimension: Dimension) -> int:
    """The largest size that is asked; where one is as many numbers as a sound, as many times that.

    Where two sizes share a bound, torch takes the other to be 2 or more; the end itself is asked anyhow.
    """
    farthest = FARTHEST * max(dimension.minimum, 1)
    return farthest if dimension.maximum is None else min(dimension.maximum - 2, farthest)


def _axes(program: torch.export.ExportedProgram, interface: Interface) -> dict[sympy.Symbol, tuple[str, ...]]:
    """The dimensions whose sum each symbol is."""
    axes: dict[sympy.Symbol, tuple[str, ...]] = {}
    for tensor, node in zip(interface.inputs, placeholders(program), strict=True):
        for declared, length in zip(tensor.shape, node.meta["val"].shape, strict=True):
            if isinstance(declared, str) and isinstance(length, torch.SymInt) and length.node.expr.is_Symbol:
                axes.setdefault(length.node.expr, terms(declared))
    return axes


def _promises(program: torch.export.ExportedProgram, known: Collection[sympy.Symbol]) -> list[sympy.Basic]:
    """What torch took for granted of sizes of inputs, each once: ranges, and what is no range."""
    environments = {
        length.node.shape_env
        for node in placeholders(program) for length in node.meta["val"].shape if isinstance(length, torch.SymInt)
    }  # fmt: skip
    found = [one.expr for env in environments for kept in env.deferred_runtime_asserts.values() for one in kept]
    for symbol, bounds in program.range_constraints.items():  # infinity is no integer
        found += [symbol >= bounds.lower] if bounds.lower.is_Integer else []
        found += [symbol <= bounds.upper] if bounds.upper.is_Integer else []
    return [promise for promise in dict.fromkeys(found) if promise.free_symbols and promise.free_symbols <= set(known)]


def _vectorised(promise: sympy.Basic, symbols: Sequence[sympy.Symbol]) -> Callable[..., np.ndarray]:
    """Over arrays of sizes, one for each symbol."""
    options = {"fully_qualified_modules": False, "inline": True, "allow_unknown_functions": True}
    printer = _Printer({**options, "user_functions": {name: name for name in FUNCTIONS}})
    return sympy.lambdify(symbols, promise, [FUNCTIONS, "numpy"], printer=printer)


def _first(
    holds: Callable[..., np.ndarray], axes: Sequence[tuple[str, ...]], sizes: Mapping[str, Any], asked: np.ndarray
) -> list[int]:
    """The first of the sizes that were asked, (count,), at which the promise fails.

    Empty where it holds at all of them, or at none as at the traced size, the first; or where it fails at one that the proof
    asks anyhow.
    """
    with np.errstate(all="ignore"):
        truth = np.broadcast_to(holds(*(sum(sizes[part] for part in axis) for axis in axes)), asked.shape).astype(bool)
    first = int(asked[np.argmin(truth)])
    return [first] if truth[0] and not truth.all() and first > ASKED else []
