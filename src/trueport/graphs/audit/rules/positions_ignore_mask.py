"""Decoders that count padding: positions from 0 to n whatever the mask says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit import bodies
from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.sites import PRODUCTS, carries_scores
from trueport.graphs.audit.terms import PASS
from trueport.graphs.audit.view import ATTENTION, EMBEDS

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

KEEPS = PASS | {"Concat", "Neg", "Sin", "Cos", "Dropout", "LayerNormalization", "ScatterND", "Where"}
"""What read positions go through."""
SCALES = {"Mul", "Div", "MatMul", "Gemm"}
"""What they go through with a number or a weight, and not with tokens."""
SUMS = {"Add", "Sub", "Sum", "SkipLayerNormalization"}
"""What adds them to something."""
MOST_VALUES = 512
"""Values that are looked at behind one table."""
COMPARES = {"LessOrEqual", "GreaterOrEqual", "Less", "Greater"}
"""What a causal mask is made with, of two rows of numbers."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """In a causal graph that takes a mask and no positions: tables, or angles, that are read by counting alone."""
    names = [value.name or "" for value in view.model.graph.inputs]
    own = [name for name in view.masks if "encoder" not in name or "decoder" in name]
    if not own or any("position" in name for name in names) or "encoder_hidden_states" in names:
        return  # a decoder with a source counts its own tokens, which start at its left edge
    found = [(node, words) for node in view.nodes if (words := _counted(view, node))]
    if not found:
        return
    masked = set().union(*(view.masks[name] for name in own))
    past = any(name.startswith("past") for name in names)
    sites = [site for site in view.sites if any(id(value) in masked for value in site.mask_values())]
    causal = {id(site.node): site for site in sites if past or _causal(view, site)}
    for node, words in found:
        if causal and _reaches(view, node, causal):
            yield rule.finding(view, node, words, severity="warning")


def _counted(view: View, node: ir.Node) -> str:
    """What is wrong with a node that adds counted positions to tokens; empty for others."""
    if node.op_type in EMBEDS:
        counts = _embeds_counted(node)
        return f"{node.op_type} counts positions from the left edge, padding included" if counts else ""
    if not _reads_counted(view, node) or not _is_added(view, node.outputs[0]):
        return ""
    what = "angles" if node.op_type in ("Cos", "Sin") else "positions"
    return f"{what} are counted from the left edge, padding included, and added to tokens"


def _reads_counted(view: View, node: ir.Node) -> bool:
    """Whether a node reads a table, or makes angles, at numbers that come from counting alone."""
    if node.op_type in ("Cos", "Sin"):
        return _counts(view, node.inputs[0])
    if node.op_type not in ("Gather", "Slice") or not view.is_weight(node.inputs[0]):
        return False
    if node.op_type == "Gather":
        return _counts(view, node.inputs[1])
    return _cut_at_length(view, node)


def _cut_at_length(view: View, node: ir.Node) -> bool:
    """Whether a Slice takes as many rows of a table of places as there are tokens."""
    table, _, ends, axes = (*node.inputs, None, None, None)[:4]
    array, axis = view.array(table), view.array(axes)
    if array is None or array.dtype.kind != "f" or axis is None or axis.size != 1 or array.ndim < 2:
        return False
    in_front = array.size // (array.shape[-2] * array.shape[-1] or 1)
    if in_front != 1 or axis.item() % array.ndim != array.ndim - 2 or ends is None or view.array(ends) is not None:
        return False
    made = list(view.backwards([ends]))
    read = {v.name for n in made for v in n.inputs if v is not None and v.is_graph_input()}
    return id(ends) not in view.masked and not _data(made, read)


def _embeds_counted(node: ir.Node) -> bool:
    """Whether an embedding operator has a table of places, and is given none (ContribOperators.md)."""
    table, places = (3, 8) if node.op_type == "EmbedLayerNormalization" else (3, None)
    inputs = [*node.inputs, *[None] * 9]
    return inputs[table] is not None and (places is None or inputs[places] is None)


def _is_added(view: View, value: ir.Value) -> bool:
    """Whether what is read at counted places is added to tokens.

    What queries and keys are multiplied by, as by rotary angles, only tells how far apart they are: padding in front moves
    all of them alike.
    """
    own: set[int] = set()
    sums: list[ir.Node] = []
    waiting = [value]
    while waiting and len(own) < MOST_VALUES:
        current = waiting.pop()
        if id(current) in own:
            continue
        own.add(id(current))
        if current.is_graph_output() and current.graph is not None and id(current.graph) in view.parents:
            waiting += bodies.left(view.parents[id(current.graph)], current)
        for node in (use.node for use in current.uses()):
            others = [v for v in node.inputs if v is not None and v is not current and view.array(v) is None]
            if node.op_type == "Where" and node.inputs[0] is current:
                continue
            if node.op_type in SUMS:
                sums.append(node)
            stays = all(view.is_weight(v) or (node.op_type in SUMS and id(v) in own) for v in others)
            if node.op_type in KEEPS or (node.op_type in SUMS | SCALES and stays):
                waiting += node.outputs
    further = (v for node in sums for v in node.inputs if v is not None and id(v) not in own and view.array(v) is None)
    return any(not view.is_weight(v) and not carries_scores(view, v) for v in further)


def _reaches(view: View, node: ir.Node, sites: Mapping[int, Site]) -> bool:
    """Whether tokens that hold what a node gives are queries or keys of one of these layers, other layers apart."""
    ends = {id(site.scores) for site in sites.values()} | set(sites)
    seen: set[int] = set()
    waiting = list(node.outputs)
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        uses = value.uses()
        view.step(1 + len(uses))
        for user in (use.node for use in uses):
            if id(user) in ends:
                return True
            attends = user.op_type in ATTENTION or (
                user.op_type in PRODUCTS and not any(map(view.is_weight, user.inputs))
            )
            if not attends:
                waiting += user.outputs
        if value.is_graph_output() and value.graph is not None and id(value.graph) in view.parents:
            waiting += bodies.left(view.parents[id(value.graph)], value)
    return False


def _causal(view: View, site: Site) -> bool:
    """Whether a layer hides the future."""
    if site.flag("unidirectional") or site.flag("is_causal") or site.node.op_type == "GroupQueryAttention":
        return True
    values = site.mask_values() if site.fused else [term.value for term in site.terms]
    return any(node.op_type == "Trilu" or _compares_positions(view, node) for node in view.backwards(values))


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
        return not any(name and "ids" in name for name in _data(made, reads))
    return not _data(made, reads) and any(_row(view, node) for node in made)


def _row(view: View, node: ir.Node) -> bool:
    """Whether a node reads a stored row of 0 to n, or adds up one and the same number along a row."""
    if node.op_type == "CumSum":
        return view.scalar(node.inputs[0]) not in (None, 0)
    moved = node.inputs[:1] if node.op_type in PASS else node.inputs
    arrays = [array for value in moved if (array := view.array(value)) is not None and array.dtype.kind in "iu"]
    return any(array.size > 2 and (np.diff(array.ravel()) == 1).all() for array in arrays)


def _data(made: list[ir.Node], reads: set[str | None]) -> set[str | None]:
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
