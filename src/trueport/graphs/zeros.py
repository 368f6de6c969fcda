"""Lengths that are quotients, and 0 where there is less than one part."""

from __future__ import annotations

import onnx_ir as ir

OLDEST = 14
"""The first opset whose Reshape can be told that 0 is a length."""
CARRIERS = ("Reshape", "Squeeze", "Unsqueeze", "Cast", "Identity")
"""Operators that hand on the number of their first input."""


def keep_zero_lengths(model: ir.Model) -> int:
    """Tell every Reshape to a quotient that 0 is a length; how many, in place.

    Reshape reads 0 as the input's own length at that place. One that is divided (LongT5's blocks of a source) may be 0 where
    that is not.
    """
    if (model.opset_imports.get("") or 0) < OLDEST:
        return 0
    count = 0
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if node.op_type == "Reshape" and node.domain in ("", "ai.onnx") and _is_to_quotient(node.inputs[1]):
            node.attributes["allowzero"] = ir.AttrInt64("allowzero", 1)
            count += 1
    return count


def _is_to_quotient(shape: ir.Value | None) -> bool:
    """Whether a shape has a quotient among its lengths, and none that is worked out from the others or copied."""
    node = None if shape is None else shape.producer()
    if node is None or node.op_type != "Concat":
        return False
    quotients = 0
    for part in node.inputs:
        constant = None if part is None else ir.convenience.get_const_tensor(part)
        if constant is not None:
            if (constant.numpy() < 1).any():
                return False
        elif _is_quotient(part):
            quotients += 1
    return quotients > 0


def _is_quotient(part: ir.Value | None) -> bool:
    node = None if part is None else part.producer()
    while node is not None and node.op_type in CARRIERS and node.inputs[0] is not None:
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Div" and node.domain in ("", "ai.onnx")
