"""Softmax without its operator: Exp, ReduceSum and Div, or Exp of a LogSoftmax."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.graphs.audit.view import uncast

if TYPE_CHECKING:
    from trueport.graphs.audit.view import View

SUMS = {"ReduceSum", "ReduceL1"}
"""What weights are divided by that do not add up to 1 any more."""


@dataclass(frozen=True)
class Spelled:
    """A softmax that is written out.

    Attributes:
        given: what it is of: the argument of Exp, its maximum perhaps taken off.
        factor: what the exponentials are multiplied by before they are summed, a mask; None where they are not.
        shifted: whether the maximum, or the logarithm of the sum, is taken off before the Exp.
        guarded: whether the sum is kept from being 0.
        axis: along which it goes; None where the graph does not tell, or sums along several.
    """

    given: ir.Value
    axis: int | None = None
    factor: ir.Value | None = None
    shifted: bool = True
    guarded: bool = False


@dataclass(frozen=True)
class Behind:
    """A mask of weights.

    Attributes:
        factor: what they are multiplied by, or chosen with against 0.
        hides: whether what is not 0 hides.
        guarded: whether a sum of 0 is looked after.
    """

    factor: ir.Value
    hides: bool = False
    guarded: bool = False


def softmax_axis(view: View, node: ir.Node) -> int | None:
    """The axis of a Softmax or LogSoftmax; None where it goes over several, as it may before opset 13."""
    found = node.attributes.get("axis")
    newer = (view.model.opset_imports.get("") or 0) >= 13
    return (-1 if newer else None) if found is None else int(found.value)


def spelled(view: View, node: ir.Node) -> Spelled | None:
    """The softmax that ends in ``node``; None where none does."""
    if node.op_type == "Exp":
        return _of_logarithm(view, node)
    if node.op_type == "Div":
        return _quotient(view, node.inputs[0], node.inputs[1])
    if node.op_type == "Mul":
        for top, other in (node.inputs, node.inputs[::-1]):
            below = None if other is None else other.producer()
            if below is not None and below.op_type == "Reciprocal":
                return _quotient(view, top, below.inputs[0])
    return None


def _of_logarithm(view: View, node: ir.Node) -> Spelled | None:
    """Exp of LogSoftmax(x), or of x less ReduceLogSumExp(x)."""
    before = None if node.inputs[0] is None else uncast(node.inputs[0]).producer()
    if before is None or before.inputs[0] is None:
        return None
    if before.op_type == "LogSoftmax":
        return Spelled(before.inputs[0], softmax_axis(view, before))
    if before.op_type != "Sub" or before.inputs[1] is None:
        return None
    sums = uncast(before.inputs[1]).producer()
    whole = sums is not None and sums.op_type == "ReduceLogSumExp" and sums.inputs[0] is before.inputs[0]
    return Spelled(before.inputs[0], _axis(view, sums)) if sums is not None and whole else None


def _quotient(view: View, top: ir.Value | None, bottom: ir.Value | None) -> Spelled | None:
    if top is None or bottom is None:
        return None
    bottom, guarded = _unguarded(view, bottom)
    sums = bottom.producer()
    if sums is None or sums.op_type != "ReduceSum" or sums.inputs[0] is None:
        return None
    exponential, factor = _exponential(view, uncast(top))
    summed, weight = _exponential(view, uncast(sums.inputs[0]))
    given = None if exponential is None or exponential is not summed else _power(view, exponential)
    if given is None:
        return None
    before = given.producer()
    taken = None if before is None or before.op_type != "Sub" or before.inputs[1] is None else before.inputs[1]
    most = None if taken is None else uncast(taken).producer()
    shifted = most is not None and most.op_type == "ReduceMax"
    return Spelled(given, _axis(view, sums), factor if factor is weight else None, shifted, guarded)


def _axis(view: View, node: ir.Node) -> int | None:
    """The one axis of a reduction, which newer opsets take as an input."""
    stored = view.array(node.inputs[1]) if len(node.inputs) > 1 else None
    given = node.attributes.get("axes")
    axes = [int(axis) for axis in (stored.flat if stored is not None else [] if given is None else given.value)]
    return axes[0] if len(axes) == 1 else None


def _unguarded(view: View, value: ir.Value) -> tuple[ir.Value, bool]:
    """A sum without the small number that keeps it from being 0."""
    value = uncast(value)
    node = value.producer()
    if node is not None and node.op_type in ("Add", "Max", "Clip") and len(node.inputs) > 1:
        for part, other in (node.inputs[:2], node.inputs[1::-1]):
            number = view.scalar(other)
            if part is not None and number is not None and number > 0:
                return uncast(part), True
    return value, False


def _power(view: View, node: ir.Node) -> ir.Value | None:
    """The argument of Exp, or of a Pow of one number above 1; None for other nodes."""
    if node.op_type == "Exp":
        return node.inputs[0]
    base = view.scalar(node.inputs[0]) if node.op_type == "Pow" else None
    return node.inputs[1] if base is not None and base > 1 else None


def _exponential(view: View, value: ir.Value) -> tuple[ir.Node | None, ir.Value | None]:
    """The Exp or Pow behind a value, and the mask that it is multiplied by, or chosen with against 0."""
    node = value.producer()
    if node is None or _power(view, node) is not None:
        return node, None
    if node.op_type == "Mul":
        pairs = [(first, second) for first, second in (node.inputs, node.inputs[::-1])]
    elif node.op_type == "Where" and view.scalar(node.inputs[2]) == 0:
        pairs = [(node.inputs[1], node.inputs[0])]
    else:
        return None, None
    for part, factor in pairs:
        made = None if part is None else uncast(part).producer()
        if made is not None and _power(view, made) is not None:
            return made, factor
    return None, None


def masked_behind(view: View, softmax: ir.Node) -> Behind | None:
    """The mask that meets the weights behind a softmax, before they are divided by their sum; None without one."""
    for node, place in ((use.node, use.idx) for use in softmax.outputs[0].uses()):
        uses = [use.node for value in node.outputs[:1] for use in value.uses()]
        quotients = [user for user in uses if user.op_type == "Div"]
        if not quotients or not any(user.op_type in SUMS for user in uses):
            continue
        guarded = all(_guarded_quotient(view, quotient) for quotient in quotients)
        if node.op_type == "Mul" and (factor := node.inputs[1 - place]) is not None:
            return Behind(factor, guarded=guarded)
        if (
            node.op_type == "Where"
            and place
            and view.scalar(node.inputs[3 - place]) == 0
            and node.inputs[0] is not None
        ):
            return Behind(node.inputs[0], hides=place == 2, guarded=guarded)
    return None


def _guarded_quotient(view: View, node: ir.Node) -> bool:
    """Whether what a Div divides by is kept from 0, or its result is looked through for NaN."""
    bottom = node.inputs[1]
    kept = bottom is not None and _unguarded(view, bottom)[1]
    return kept or any(use.node.op_type in ("Where", "IsNaN") for use in node.outputs[0].uses())
