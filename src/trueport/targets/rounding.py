"""Few bits chosen on prompts: what rounding one weight spoils, the weights that are still to be rounded make good.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, ICLR 2023). Of a layer with weights W (outputs, width) and activations X
(tokens, width) it keeps X W^T near to what it was, where rounding to the nearest keeps W near: columns are rounded one
after the other, and the error of each is spread over those behind it as the inverse of X^T X says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

Item = TypeVar("Item")

DAMPING = 0.01
"""Of the mean of the moments' diagonal, added to all of it, as GPTQ does: the moments of few tokens have no inverse."""
COLUMNS = 128
"""Rounded before what they spread reaches the columns behind them, in one product."""
HELD = 2**30
"""Bytes of moments at a time; the calibration runs once for as many layers as they suffice for."""


@dataclass(frozen=True)
class Grid:
    """The values that the weights of a matrix (outputs, width) can take, ``scale * (level - zero)``, block by block.

    Attributes:
        size: weights of a block, along the width; the last may be shorter.
        scales: (outputs, blocks) float32.
        zeros: (outputs, blocks), whole numbers.
        lowest: of the levels.
        highest: of the levels.
    """

    size: int
    scales: np.ndarray
    zeros: np.ndarray
    lowest: int
    highest: int


def levels_on(matrix: np.ndarray, moments: np.ndarray, grid: Grid) -> np.ndarray:
    """The levels (outputs, width) int16 of a float32 matrix on a grid, near in what they make of activations.

    Args:
        matrix: the weights.
        moments: X^T X of the activations that the layer meets, (width, width) float32 or float64.
        grid: chosen before, so that columns may come in any order.
    """
    outputs, width = matrix.shape
    # The columns that matter most first, while there are many left to make good (GPTQ's act-order).
    order = np.argsort(-np.diag(moments), kind="stable")
    spread = _spread(moments[np.ix_(order, order)])
    weights = matrix[:, order].astype(np.float32)
    levels = np.empty((outputs, width), np.int16)
    for start in range(0, width, COLUMNS):
        stop = min(start + COLUMNS, width)
        errors = np.empty((outputs, stop - start), np.float32)
        for column in range(start, stop):
            block = order[column] // grid.size
            scale, zero = grid.scales[:, block], grid.zeros[:, block]
            level = (np.rint(weights[:, column] / scale) + zero).clip(grid.lowest, grid.highest)
            levels[:, order[column]] = level
            error = (weights[:, column] - (level - zero) * scale) / spread[column, column]
            weights[:, column + 1 : stop] -= error[:, None] * spread[column, column + 1 : stop]
            errors[:, column - start] = error
        weights[:, stop:] -= errors @ spread[start:stop, stop:]
    return levels


def portions(items: Iterable[Item], widths: Callable[[Item], Iterable[int]]) -> Iterator[list[Item]]:
    """As many at a time as ``HELD`` has room for with the moments of layers of these widths, at least one."""
    part: list[Item] = []
    held = 0
    for item in items:
        size = 4 * sum(width**2 for width in widths(item))
        if part and held + size > HELD:
            yield part
            part, held = [], 0
        part.append(item)
        held += size
    if part:
        yield part


def _spread(moments: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped moments' inverse: row i says how the error of column i is made good."""
    damped: Any = moments.astype(np.float64)
    diagonal = np.diag(damped)
    damped = damped + np.eye(len(damped)) * (DAMPING * diagonal.mean() or 1.0)
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
