"""Which positions of an output are real: its mask's, or where convolutions shorten it, those that real inputs make."""

from __future__ import annotations

import numpy as np

from trueport.interface import Interface, evaluate
from trueport.proof.inputs import Batch


def positions(shape: tuple[int | str, ...], padded: Interface, batch: Batch) -> np.ndarray | None:
    """(batch, positions) booleans; None for an output without positions.

    A row alone of so many real inputs makes so many positions, and they come first: the mask of a shortened axis cannot say
    more than how many there are, so that a model which shortens reads it as padding at the right, wherever it is.

    Args:
        shape: of the output, as the interface has it.
        padded: the interface of the side that can be padded.
        batch: the question.
    """
    axis = shape[1] if len(shape) > 1 else 0
    if not isinstance(axis, str):
        return None
    length = padded.inputs[0].shape[-1]
    if axis == length or not isinstance(length, str):
        return np.asarray(batch.mask == 1)
    try:
        whole, *counts = (
            max(evaluate(axis, {length: int(n)}), 0) for n in (batch.mask.shape[1], *batch.mask.sum(axis=1))
        )
    except (KeyError, ValueError):  # another tool's name for the same axis, or the decoder's
        return np.asarray(batch.mask == 1)
    return np.arange(whole) < np.array(counts)[:, None]
