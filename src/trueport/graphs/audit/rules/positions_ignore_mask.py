"""Decoders that count padding: positions from 0 to n whatever the mask says."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.terms import PASS

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.view import View

COMPARES = {"LessOrEqual", "GreaterOrEqual", "Less", "Greater"}
"""What a causal mask is made with, of two rows of numbers."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """In a causal graph that takes a mask and no positions: tables, or angles, that are read by counting alone."""
    names = [value.name or "" for value in view.model.graph.inputs]
    if not view.masks or any("position" in name for name in names) or not _causal(view, names):
        return
    own = [name for name in view.masks if "encoder" not in name or "decoder" in name]
    if not own or "encoder_hidden_states" in names:
        return  # a decoder with a source counts its own tokens, which start at its left edge
    for node in view.nodes:
        if node.op_type == "Gather" and view.is_weight(node.inputs[0]):
            if _counts(view, node.inputs[1]):
                yield rule.finding(
                    view, node, "positions are counted from the left edge, padding included", severity="warning"
                )
        elif node.op_type in ("Cos", "Sin") and _counts(view, node.inputs[0]):
            yield rule.finding(
                view, node, "rotary angles are counted from the left edge, padding included", severity="warning"
            )


def _causal(view: View, names: list[str]) -> bool:
    if any(name.startswith("past") for name in names):
        return True
    for site in view.sites:
        if site.flag("unidirectional") or site.flag("is_causal") or site.node.op_type == "GroupQueryAttention":
            return True
        values = site.mask_values() if site.fused else [term.value for term in site.terms]
        if any(node.op_type == "Trilu" or _compares_positions(view, node) for node in view.backwards(values)):
            return True
    return False


def _compares_positions(view: View, node: ir.Node) -> bool:
    """Key position against query position as they are; a window compares a distance, or a position moved by its size."""
    return node.op_type in COMPARES and all(_ranges(view, value, moved=False) for value in node.inputs)


def _ranges(view: View, value: ir.Value | None, *, moved: bool) -> bool:
    """Whether a value is a Range; ``moved``: whether it may have been added to."""
    made = list(view.backwards([value]))
    if not any(node.op_type == "Range" for node in made):
        return False
    shifts = (n for n in made if n.op_type in ("Add", "Sub", "Abs"))
    return moved or not any(
        any(view.scalar(v) not in (None, 0) for v in n.inputs) or n.op_type == "Abs" for n in shifts
    )


def _counts(view: View, value: ir.Value | None) -> bool:
    """Whether a value comes from a Range, or from a stored row of numbers, and from no mask."""
    if value is None or id(value) in view.masked:
        return False
    array = view.array(value)
    if array is not None:
        return array.size > 1 and array.dtype.kind in "iu"
    made = list(view.backwards([value]))
    if any(node.op_type == "Sub" and all(_ranges(view, v, moved=True) for v in node.inputs) for node in made):
        return False  # distances do not depend on where the counting starts
    reads = {source.name for node in made for source in node.inputs if source is not None and source.is_graph_input()}
    if any(node.op_type == "Range" for node in made):
        return not any(name and "ids" in name for name in _data(view, made, reads))
    return not _data(view, made, reads) and any(_row(view, node) for node in made)


def _row(view: View, node: ir.Node) -> bool:
    """Whether a node reads a stored row of 0 to n, or adds up one and the same number along a row."""
    if node.op_type == "CumSum":
        return view.scalar(node.inputs[0]) not in (None, 0)
    moved = node.inputs[:1] if node.op_type in PASS else node.inputs
    arrays = [array for value in moved if (array := view.array(value)) is not None and array.dtype.kind in "iu"]
    return any(array.size > 2 and (np.diff(array.ravel()) == 1).all() for array in arrays)


def _data(view: View, made: list[ir.Node], reads: set[str | None]) -> set[str | None]:
    """Inputs whose content, not only whose size, is read."""
    sized = {
        source.name
        for node in made
        if node.op_type in ("Shape", "Size")
        for source in node.inputs
        if source is not None
    }
    return reads - sized


POSITIONS_IGNORE_MASK = Rule(
    "positions-ignore-mask",
    "Positions ignore the mask",
    "Export with position_ids as an input, and feed the running count of the mask: left padding then counts nothing.",
    check,
)
