"""Four bits chosen on prompts: what rounding one weight spoils, the weights that are still to be rounded make good.

GPTQ (Frantar, Ashkboos, Hoefler and Alistarh, ICLR 2023). Of a layer with weights W (outputs, width) and activations X
(tokens, width) it keeps X W^T near to what it was, where rounding to the nearest keeps W near: columns are rounded one
after the other, and the error of each is spread over those behind it as the inverse of X^T X says.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from trueport.targets.onnx.blocks import Blocks, levels_in_blocks, spans

DAMPING = 0.01
"""Of the mean of the moments' diagonal, added to all of it, as GPTQ does: the moments of few tokens have no inverse."""
COLUMNS = 128
"""Rounded before what they spread reaches the columns behind them, in one product."""


def in_blocks_on(matrix: np.ndarray, moments: np.ndarray, size: int) -> Blocks:
    """Round a float32 matrix (outputs, width) to four bits as ``in_blocks`` does, near in what it makes of activations.

    Args:
        matrix: the weights.
        moments: X^T X of the activations that the layer meets, (width, width) float32 or float64.
        size: weights of a block.
    """
    outputs, width = matrix.shape
    scales, zeros = spans(matrix, size)
    # The columns that matter most first, while there are many left to make good (GPTQ's act-order); a block's scale is
    # chosen before, so that its columns may come at any time.
    order = np.argsort(-np.diag(moments), kind="stable")
    spread = _spread(moments[np.ix_(order, order)])
    weights = matrix[:, order].astype(np.float32)
    levels = np.empty((outputs, width), np.uint8)
    for start in range(0, width, COLUMNS):
        stop = min(start + COLUMNS, width)
        errors = np.empty((outputs, stop - start), np.float32)
        for column in range(start, stop):
            block = order[column] // size
            scale, zero = scales[:, block], zeros[:, block]
            level = (np.rint(weights[:, column] / scale) + zero).clip(0, 15)
            levels[:, order[column]] = level
            error = (weights[:, column] - (level - zero) * scale) / spread[column, column]
            weights[:, column + 1 : stop] -= error[:, None] * spread[column, column + 1 : stop]
            errors[:, column - start] = error
        weights[:, stop:] -= errors @ spread[start:stop, stop:]
    return levels_in_blocks(levels, scales, zeros, size)


def _spread(moments: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped moments' inverse: row i says how the error of column i is made good."""
    damped: Any = moments.astype(np.float64)
    diagonal = np.diag(damped)
    damped = damped + np.eye(len(damped)) * (DAMPING * diagonal.mean() or 1.0)
    return np.linalg.cholesky(np.linalg.inv(damped)).T.astype(np.float32)
