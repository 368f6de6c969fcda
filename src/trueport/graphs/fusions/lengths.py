"""How long the axes of masks and positions are, which shape inference does not follow through ranges."""

from __future__ import annotations

import onnx_ir as ir

from trueport.graphs.fusions.reading import attribute, numbers, operand, parts, scalar
from trueport.interface import terms

ELEMENTWISE = frozenset(
    ("Add", "And", "Cast", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Max", "Not", "Or", "Sub")
)
"""Operators whose result is along each axis as long as the longest operand."""
SAME = frozenset(("Cast", "Reshape", "Squeeze", "Unsqueeze"))
"""Operators that leave a single number what it is."""
DEPTH = 64
"""Operators that are followed; masks take a dozen."""
Length = tuple[str, ...]
"""The dimensions that a length adds up, sorted; () for one, a number's digits for any other."""


class Lengths:
    """The lengths of values' axes, with what was found before. Needs inferred shapes."""

    def __init__(self) -> None:
        self.known: dict[ir.Value, list[Length] | None] = {}

    def of(self, value: ir.Value | None, depth: int = DEPTH) -> list[Length] | None:
        """One for each axis; None where one is not known."""
        if value is None or depth == 0:
            return None
        if value not in self.known:
            self.known[value] = self._found(value, depth - 1)
        return self.known[value]

    def told_by(self, shape: ir.Value | None) -> list[Length] | None:
        """The entries of a shape that is put together from single lengths; None where one is not known."""
        pieces = None if shape is None else parts(shape)
        entries = None if pieces is None else [self._number(piece, DEPTH) for piece in pieces]
        return None if entries is None or None in entries else [entry for entry in entries if entry is not None]

    def _found(self, value: ir.Value, depth: int) -> list[Length] | None:
        node = value.producer()
        kind = "" if node is None or node.domain not in ("", "ai.onnx") else node.op_type
        if node is not None and kind == "Range":
            limit = self._number(node.inputs[1], depth)
            return [limit] if limit is not None and [scalar(node.inputs[place]) for place in (0, 2)] == [0, 1] else None
        if node is not None and kind == "Unsqueeze":
            inner, axes = self.of(node.inputs[0], depth), numbers(operand(node, 1))
            if inner is None or not axes:
                return None
            rank, kept = len(inner) + len(axes), iter(inner)
            new = {axis % rank for axis in axes}
            if len(new) != len(axes):
                return None
            return [() if axis in new else next(kept) for axis in range(rank)]
        if node is not None and kind in ELEMENTWISE and value.dtype in (ir.DataType.BOOL, ir.DataType.INT64):
            return _broadcast([self.of(given, depth) for given in node.inputs])
        return _noted(value)

    def _number(self, value: ir.Value | None, depth: int) -> Length | None:
        """What a single number counts: an axis of some value, or several together."""
        constant, node = scalar(value), None if value is None else value.producer()
        if constant is not None:
            return _length(constant) if isinstance(constant, int) else None
        if node is None or depth == 0 or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type in SAME:
            return self._number(node.inputs[0], depth - 1)
        if node.op_type == "Add":
            both = [self._number(given, depth - 1) for given in node.inputs]
            named = [term for one in both if one for term in one if not term.isdigit()]
            return tuple(sorted(named)) if len(named) == sum(len(one or ("?",)) for one in both) else None
        start = attribute(node, "start", 0)
        if node.op_type == "Shape" and attribute(node, "end", None) == start + 1:
            noted = _noted(node.inputs[0])
            return noted[start] if noted is not None and -len(noted) <= start < len(noted) else None
        return None


def _broadcast(operands: list[list[Length] | None]) -> list[Length] | None:
    """Operands of an elementwise operator together: what is one gives way."""
    known = [lengths for lengths in operands if lengths is not None]
    if len(known) != len(operands):
        return None
    rank, found = max(map(len, known)), []
    for along in zip(*[[()] * (rank - len(lengths)) + lengths for lengths in known], strict=True):
        longer: set[Length] = {length for length in along if length}
        if len(longer) > 1:
            return None
        found.append(longer.pop() if longer else ())
    return found


def _noted(value: ir.Value | None) -> list[Length] | None:
    """What inference noted."""
    if value is None or value.shape is None:
        return None
    sizes = [size if isinstance(size, int) else size.value for size in value.shape]
    return None if None in sizes else [_length(size) for size in sizes if size is not None]


def _length(size: int | str) -> Length:
    if isinstance(size, int):
        return () if size == 1 else (str(size),)
    return tuple(sorted(terms(size)))
