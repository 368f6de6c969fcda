"""Rotary position embedding as one operator, given the angles of every row."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from trueport.graphs.fusions.reading import attribute, made_by, numbers, rank, scalar

ELEMENTWISE = {"Cos", "Sin", "Cast", "Mul"}
"""Operators that keep two equal halves equal; a ``Mul`` only by a scalar."""


class Rotary(pattern.RewriteRuleClassBase):
    """x·cos + rotate_half(x)·sin (Su et al., 2021) as RotaryEmbedding with cos and sin of every row and token.

    The angles stay where the graph computes them, from each row's own position ids. An operator that is given a table
    and positions, or GroupQueryAttention's own rotary, would have to be right about them: the latter is not, under
    left padding.
    """

    def __init__(self) -> None:
        super().__init__(name="rotary", remove_nodes=False)

    def pattern(
        self, op: Any, x: Any, cos: Any, sin: Any, zero: Any, half: Any, half_again: Any, end: Any, axes: Any, step: Any
    ) -> Any:  # fmt: skip
        """As transformers write it."""
        low = op.Slice(x, zero, half, axes, step)
        high = op.Slice(x, half_again, end, axes, step)
        turned = op.Concat(op.Neg(high), low, axis=-1)
        return op.Add(op.Mul(x, cos), op.Mul(turned, sin))

    def check(
        self, context: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, zero: ir.Value, half: ir.Value,
        half_again: ir.Value, axes: ir.Value, step: ir.Value, end: ir.Value, **_: Any,
    ) -> bool:  # fmt: skip
        """Two halves of the last of four axes; angles whose halves are equal, one set for all heads."""
        middle = numbers(half)
        return (
            numbers(zero) == [0]
            and middle is not None
            and middle == numbers(half_again)
            and (numbers(end) or [0])[0] >= 2 * middle[0]
            and numbers(axes) in ([3], [-1])
            and numbers(step) == [1]
            and rank(x) == 4
            and x.dtype == ir.DataType.FLOAT
            and x.shape is not None
            and x.shape[3] == 2 * middle[0]
            and _halved(cos) is not None
            and _halved(sin) is not None
        )

    def rewrite(self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, half: ir.Value, **_: Any) -> Any:
        """The first half of the angles, without the axis of the heads."""
        size = numbers(half) or [0]
        ends = [op.Constant(value_ints=[number]) for number in (0, size[0], -1)]
        cut = [op.Slice(_halved(angle), *ends) for angle in (cos, sin)]
        if any(
            _of_one_row(angle) for angle in (cos, sin)
        ):  # positions that are the same for all: the operator broadcasts none
            one = op.Constant(value_ints=[1])
            rows = op.Concat(op.Shape(x, start=0, end=1), one, one, axis=0)
            cut = [op.Expand(angle, rows) for angle in cut]
        return op.RotaryEmbedding(x, *cut, interleaved=0)


def _halved(angle: ir.Value) -> ir.Value | None:
    """(batch, sequence, size) behind an angle's (batch, 1, sequence, size); None unless both halves are surely equal."""
    node = made_by(angle, "Unsqueeze")
    if node is None or numbers(node.inputs[1]) != [1] or rank(node.inputs[0]) != 3:
        return None
    value = node.inputs[0]
    return value if _repeats(value) else None


def _of_one_row(angle: ir.Value) -> bool:
    value = _halved(angle)
    return value is not None and value.shape is not None and value.shape[0] == 1


def _repeats(value: ir.Value | None) -> bool:
    """Whether a value goes back, element by element, to something concatenated with itself."""
    for _ in range(len(ELEMENTWISE) + 1):
        node = None if value is None else value.producer()
        if node is None:
            return False
        if node.op_type == "Concat":
            return len(node.inputs) == 2 and node.inputs[0] is node.inputs[1] and attribute(node, "axis", 0) in (-1, 2)
        if node.op_type not in ELEMENTWISE:
            return False
        others = [operand for operand in node.inputs if scalar(operand) is None]
        if len(others) != 1:
            return False
        value = others[0]
    return False
