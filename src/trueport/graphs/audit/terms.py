"""Mask terms: what is added to scores, or put in their place, so that a key gets no weight."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.bodies import inner_graphs
from trueport.graphs.audit.view import narrowed, uncast

if TYPE_CHECKING:
    from trueport.graphs.audit.view import View

FILL_FROM = -500.0
"""The weakest number that is taken for a fill; biases of real models are smaller."""
MASK_FILL_FROM = -20.0
"""The weakest where a mask input decides: exp(-20) is 2e-9."""
MOST_PRODUCTS = 4
"""Products within products that are looked into."""
MOST_TERMS = 16
"""Masks of one layer that are told apart."""
DECISIONS = {"Not", "And", "Or", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual"}
"""Operators that give true or false."""
PASS = {"Identity", "Cast", "CastLike", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Tile", "Flatten",
        "Slice", "Gather", "Trilu", "Pad", "GatherND", "Split", "QuantizeLinear", "DequantizeLinear"}  # fmt: skip
"""Operators whose result holds some of their first input's elements, zeros apart."""


@dataclass(frozen=True)
class Term:
    """A mask on its way to the scores.

    Attributes:
        node: the Add or Sub that adds it, or the Where that chooses.
        value: what is added; the condition where ``node`` is a Where.
        fill: what a hidden key gets, at most ``FILL_FROM``, or ``MASK_FILL_FROM`` where a mask input decides.
        chosen: whether the fill replaces the score instead of being added to it.
        hides: of a Where, whether a true condition hides.
        times: how many masks the value counts before the fill is multiplied in.
        factor: what scores and fill are multiplied by together before the softmax.
    """

    node: ir.Node
    value: ir.Value
    fill: float
    chosen: bool = False
    hides: bool = False
    times: int = 1
    factor: float = 1.0


class Fills:
    """Finds out whether a value is 0 for visible keys and a large negative number for hidden ones.

    Args:
        view: the graph.
    """

    def __init__(self, view: View) -> None:
        self.view = view
        self._known: dict[int, float | None] = {}

    def of(self, value: ir.Value | None, depth: int = 0) -> float | None:
        """The fill of a mask term; None for what is no mask term."""
        if value is None or depth > 40:
            return None
        if id(value) not in self._known:
            self._known[id(value)] = None  # against circles, which a checked graph has none of
            self._known[id(value)] = self._find(value, depth + 1)
        return self._known[id(value)]

    def _find(self, value: ir.Value, depth: int) -> float | None:
        source = self.view.source(value)
        if source is None or source is not value:
            return self.of(source, depth)
        array = self.view.array(value)
        if array is not None:
            return _fill_of_array(array)
        node = value.producer()
        if node is None or not node.inputs:
            return None
        kind, inputs = node.op_type, list(node.inputs)
        if kind in PASS:
            whole = self.view.scalar(inputs[0]) if kind == "Trilu" else None
            inner = whole if whole is not None and whole <= FILL_FROM else self.of(inputs[0], depth)
            return inner if inner is None else narrowed(node, inner)
        if kind == "Where":
            return self._chosen(inputs[1:3], self.limit(inputs[0]), depth)
        if kind == "If":
            place = list(node.outputs).index(value)
            return self._chosen([graph.outputs[place] for graph in inner_graphs(node)], FILL_FROM, depth)
        if kind == "Neg":
            return self.positive(inputs[0])
        if kind == "Log" and id(inputs[0]) in self.view.masked:
            return self._logarithm(inputs[0])
        if kind in ("Add", "Min"):
            parts = [self.of(term, depth) for term in inputs]
            fills = [fill for fill in parts if fill is not None]
            if len(fills) < len(parts):
                return None
            return sum(fills) if kind == "Add" else min(fills)
        if kind in ("Max", "Clip"):
            floor = self.view.scalar(inputs[1]) if len(inputs) > 1 else None
            fill = self.of(inputs[0], depth)
            return fill if fill is None or floor is None else max(fill, floor)
        if kind in ("Mul", "Div"):
            return self._product(node, depth)
        if kind in ("ScatterND", "ScatterElements"):
            fills = [fill for fill in (self.of(inputs[0], depth), self.of(inputs[2], depth)) if fill is not None]
            return min(fills, default=None)
        if kind == "Concat":
            found = [self.of(part, depth) for part in inputs]
            fills = [fill for fill in found if fill is not None]
            zeros = all(f is not None or self.view.scalar(p) == 0 for f, p in zip(found, inputs, strict=True))
            return min(fills) if fills and zeros else None
        return None

    def limit(self, decider: ir.Value | None) -> float:
        """The weakest number that is a fill where ``decider`` says which keys get it."""
        return MASK_FILL_FROM if id(decider) in self.view.masked else FILL_FROM

    def _logarithm(self, value: ir.Value | None) -> float | None:
        """``log(mask)`` is -inf where the mask is 0; ``log(mask + 1e-45)`` is not, nor is that of a sigmoid."""
        node = value.producer() if value is not None else None
        if node is not None and node.op_type in ("Add", "Max", "Clip"):
            for number in map(self.view.scalar, node.inputs):
                if number is not None and 0 < number < 1:
                    return math.log(number)
        return -math.inf if self._decision(value) else None

    def _chosen(self, branches: list[ir.Value | None], limit: float, depth: int) -> float | None:
        """A Where between a fill and zero, or between a fill and another mask term; an If in the same way."""
        scalars = [self._number(branch) for branch in branches]
        fills = [scalar for scalar in scalars if scalar is not None and scalar <= limit]
        for scalar, branch in zip(scalars, branches, strict=True):
            if scalar is None:
                inner = self.of(branch, depth)
                if inner is None:
                    return None
                fills.append(inner)
            elif scalar > limit and scalar != 0:
                return None
        return min(fills, default=None)

    def _number(self, value: ir.Value | None) -> float | None:
        """One number, also where a Where chooses between equal ones."""
        node = value.producer() if value is not None else None
        if node is None or node.op_type != "Where":
            return self.view.scalar(value)
        first, second = (self.view.scalar(branch) for branch in node.inputs[1:3])
        return first if first == second else None

    def _factors(self, product: ir.Node) -> list[tuple[float, ir.Value | None]]:
        """The numbers that a Mul or a Div multiplies by, and what is multiplied."""
        first, second = product.inputs[:2]
        if product.op_type == "Div":
            number = self.view.scalar(second)
            return [(1 / number, first)] if number else []
        pairs = [(self.view.scalar(scaled), other) for scaled, other in ((first, second), (second, first))]
        return [(factor, other) for factor, other in pairs if factor is not None]

    def _product(self, product: ir.Node, depth: int) -> float | None:
        """``(1 - mask) * fill``, ``(mask - 1) * -fill``, or a mask term times a number, or something from 0 to 1."""
        for factor, other in self._factors(product):
            if abs(factor) < -self.limit(other):
                continue
            node = other.producer() if other is not None else None
            if node is not None and node.op_type in ("MatMul", "FusedMatMul", "Einsum", "Gemm", "Gather"):
                return None
            if factor < 0:
                return factor
            if node is not None and node.op_type == "Sub" and self.view.scalar(node.inputs[1]) == 1:
                return -factor
        for factor, other in self._factors(product):
            inner = self.of(other, depth)
            if inner is not None:
                return inner * factor if factor > 0 and inner * factor <= self.limit(other) else None
        if product.op_type == "Div":
            return None
        inputs = list(product.inputs)
        fills = [fill for fill in (self.of(value, depth) for value in inputs) if fill is not None]
        if len(fills) != 1:
            return None
        return fills[0] if self.view.scalar(inputs[0]) is None and self.view.scalar(inputs[1]) is None else None

    def positive(self, value: ir.Value | None) -> float | None:
        """The fill, negated, of what a Sub takes away: ``1e6 * (1 - mask)``, or a Where between 0 and 1e6."""
        node = value.producer() if value is not None else None
        while node is not None and node.op_type in PASS and node.inputs[0] is not None:
            node = node.inputs[0].producer()
        if node is not None and node.op_type == "Where":
            numbers = sorted(number for number in map(self.view.scalar, node.inputs[1:3]) if number is not None)
            whole = len(numbers) == 2 and numbers[0] == 0 and numbers[1] >= -self.limit(node.inputs[0])
            return -numbers[1] if whole else None
        if node is None or node.op_type not in ("Mul", "Div"):
            return None
        return next((-factor for factor, other in self._factors(node) if factor >= -self.limit(other)), None)

    def times(self, value: ir.Value) -> int:
        """How many masks a product adds up before it multiplies them by the fill: ``((1 - a) + (1 - b)) * fill``."""
        node = value.producer()
        if node is None or node.op_type != "Mul":
            return 1
        for scaled, other in (node.inputs, node.inputs[::-1]):
            if self.view.scalar(scaled) is not None and other is not None:
                inner = uncast(other).producer()
                if inner is not None and inner.op_type == "Add":
                    return len(inner.inputs) if all(map(self._decision, inner.inputs)) else 1
        return 1

    def _decision(self, value: ir.Value | None, depth: int = 0) -> bool:
        """Whether a value is 0 or 1: a condition, a mask input, 1 less one of these, or a product of them."""
        for _ in range(8):
            if value is None:
                return False
            value = uncast(value)
            node = value.producer()
            if node is None:
                return value.is_graph_input() and id(value) in self.view.masked
            if node.op_type in DECISIONS or (node.op_type == "Trilu" and self.view.scalar(node.inputs[0]) == 1):
                return True
            if node.op_type in ("Mul", "Min") and depth < MOST_PRODUCTS:
                return all(self._decision(factor, depth + 1) for factor in node.inputs)
            if node.op_type == "Sub" and self.view.scalar(node.inputs[0]) == 1:
                value = node.inputs[1]
            elif node.op_type in PASS:
                value = node.inputs[0]
            else:
                return False
        return False

    def inside(self, value: ir.Value | None, depth: int = 0) -> list[Term]:
        """Mask terms that a bias holds already: ``position bias + mask``."""
        node = value.producer() if value is not None else None
        if node is None or depth > 12 or self.of(value) is not None:
            return []
        if node.op_type in PASS or node.op_type in ("Mul", "Div"):
            return self.inside(node.inputs[0], depth + 1)
        if node.op_type != "Add":
            return []
        found = []
        for term in node.inputs:
            fill = self.of(term)
            if fill is not None and term is not None:
                found += self.summands(Term(node, term, fill))
            else:
                found += self.inside(term, depth + 1)
        return found

    def summands(self, term: Term) -> list[Term]:
        """A term that is itself a sum of masks, taken apart; of endless sums the first ``MOST_TERMS``."""
        found: list[Term] = []
        waiting = [term]
        while waiting and len(found) < MOST_TERMS:
            part = waiting.pop()
            node = part.value.producer()
            if node is not None and node.op_type == "Add" and all(self.of(value) is not None for value in node.inputs):
                waiting += [
                    Term(node, value, self.of(value) or 0.0) for value in node.inputs[::-1] if value is not None
                ]
            else:
                found.append(replace(part, times=self.times(part.value)))
        return found


def _fill_of_array(array: np.ndarray) -> float | None:
    """Of a stored mask: its lowest entry, where all others are 0 or fills too."""
    if array.dtype.kind != "f" or array.size < 2:
        return None
    hidden = array <= FILL_FROM
    return float(array.min()) if hidden.any() and (array[~hidden] == 0).all() else None
