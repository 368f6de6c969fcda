"""How far an artefact may lie from the truth, derived from what PyTorch's own dtype costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

MULTIPLE = 10.0
"""The artefact sums in another order than PyTorch, so its error is another draw from the same distribution; the largest
of many draws exceeds the largest of as many others by ten only when something else is at work."""

MEASURED = 24
"""Tokens of the batch on which the noise floor is measured."""
APART = 4.0
"""How many times as large as the noise of that batch the noise of another one may be taken to be: the largest of a few dozen
draws whose tails are heavy, as a recurrence's are. A wrong mask lies four decades farther off."""
EPSILONS = {"float64": 2.0**-53, "float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
"""Unit roundoff by dtype (IEEE 754)."""


PRECISE = "in float64"
JITTERED = (
    "with every weight moved by one unit in the last place (Monte Carlo arithmetic, Parker 1997), "
    "as in float64 it does not run or is not finite"
)
"""What the original is held against to find the noise floor."""
ROUNDED = (
    "with every weight moved by one unit in the last place (Monte Carlo arithmetic, Parker 1997), "
    "as rounding decides what it answers: in float64 it answers something else"
)
MOVED = (
    "In float64 the original does not run or is not finite or something else, and its noise floor needs a copy with "
    "every weight moved"
)
"""Why a proof may need a copy of the weights."""
DROWNED = "rounding alone decides it: ten noise floors are as large as the answers, and nothing can be proven"
"""Why an output fails whatever the artefact answers."""
RANDOM_WALK = (
    "unit roundoff times the square root of the number of operators, as rounding errors add up like a random walk "
    "(Higham and Mary, SIAM J. Sci. Comput. 41(5), 2019)"
)
"""How a floor is found where it cannot be measured."""


@dataclass(frozen=True)
class Tolerance:
    """Budgets by output.

    Attributes:
        floors: noise floor of each output, relative to the output's largest magnitude.
        default: the floor of an output that has none.
        multiple: how many noise floors an artefact may be off.
        words: how the floor was found.
    """

    floors: Mapping[str, float]
    default: float
    multiple: float
    words: str

    def budget(self, name: str, scale: float) -> float:
        """The largest allowed absolute error of output ``name`` whose largest magnitude is ``scale``."""
        return self.multiple * self.floors.get(name, self.default) * scale

    def tells(self, name: str) -> bool:
        """Whether the budget of output ``name`` is smaller than its answers; else a tensor of zeros would pass."""
        return not blind({name: self.floors[name]}) if name in self.floors else True

    def floor(self) -> float:
        """The largest noise floor, relative."""
        return max([*self.floors.values()], default=self.default)


def blind(floors: Mapping[str, float]) -> bool:
    """Whether noise is as large as the answers: any numbers would be within ten times of it."""
    return max(floors.values(), default=0.0) * MULTIPLE >= 1


def measured(floors: Mapping[str, float], dtype: str, depth: int, words: str) -> Tolerance:
    """From measured differences between the original and a finer or moved self, at least one rounding each."""
    return Tolerance(
        {name: max(floor, EPSILONS[dtype]) for name, floor in floors.items()},
        random_walk(dtype, depth),
        MULTIPLE,
        f"the original in {dtype} against itself {words}, on the proof's own inputs",
    )


def modelled(dtype: str, depth: int) -> Tolerance:
    """Without the original: rounding errors of ``depth`` operators in a row as a random walk."""
    return Tolerance(
        {},
        random_walk(dtype, depth),
        MULTIPLE,
        f"{RANDOM_WALK} of {dtype}",
    )


def random_walk(dtype: str, depth: int) -> float:
    """Unit roundoff times the square root of the number of roundings."""
    return EPSILONS.get(dtype, EPSILONS["float32"]) * float(np.sqrt(max(depth, 1)))
