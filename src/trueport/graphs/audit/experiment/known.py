"""What the experiment's modules share: a value, what is not known, and the limits of both."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

LARGEST = 1 << 20
"""Elements of the largest array; the experiment's masks have some hundred."""

Array = Any
Operands = Sequence[Any]


class UnknownError(Exception):
    """A value that the experiment cannot work out."""


MISFITS = (ValueError, LookupError, TypeError, ArithmeticError, AttributeError)
"""What NumPy and Python say of shapes, attributes and numbers that do not fit each other."""


@dataclass(frozen=True)
class Known:
    """A value.

    Attributes:
        array: its numbers; of a hidden state or a score one number, of a masked score those in the mask's shape.
        score: whether it comes from hidden states.
    """

    array: Any
    score: bool = False


def attribute(node: ir.Node, name: str, default: Any = None) -> Any:
    """An attribute's value."""
    found = node.attributes.get(name)
    return default if found is None else found.value


def bounded(*sizes: int) -> None:
    """Refuse an array of these axes that is too large.

    Raises:
        UnknownError: it is.
    """
    if any(size < 0 for size in sizes) or math.prod(int(size) for size in sizes) > LARGEST:
        raise UnknownError


def numbers(node: ir.Node, operands: Operands, place: int, name: str) -> list[int] | None:
    """A list of integers that newer opsets take as an input and older ones as an attribute."""
    if place < len(operands) and operands[place] is not None:
        return [int(number) for number in np.asarray(operands[place]).flat]
    found = attribute(node, name)
    return None if found is None else [int(number) for number in found]
