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
    if len(shape) < 2 or not isinstance(shape[1], str):
        return None
    whole, *counts = (made(shape[1], padded, int(n)) for n in (batch.mask.shape[1], *batch.mask.sum(axis=1)))
    if whole is None:
        return np.asarray(batch.mask == 1)
    return np.arange(whole) < np.array(counts)[:, None]


def made(axis: str, padded: Interface, count: int) -> int | None:
    """How many positions so many inputs make along an axis that is shortened; None along another one.

    Other tools call the same axis otherwise, and a decoder's has nothing to do with the padded side.
    """
    length = padded.inputs[0].shape[-1]
    if axis == length or not isinstance(length, str):
        return None
    try:
        return max(evaluate(axis, {length: count}), 0)
    except (KeyError, ValueError):
        return None
