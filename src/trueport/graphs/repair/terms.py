"""Softmax layers: their masks become one condition, which chooses between the score and the lowest number."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.terms import MASK_FILL_FROM
from trueport.graphs.repair.builder import Builder
from trueport.graphs.repair.probe import Probe, detached, weakest

if TYPE_CHECKING:
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.terms import Term
    from trueport.graphs.audit.view import View

KEEPS_LAYOUT = {"Add", "Sub", "Mul", "Div", "Where", "Cast", "Identity", "Max", "Clip", "Tanh", "Min"}
"""Operators on the way to the softmax that leave every score at its place."""
HIDDEN = MASK_FILL_FROM / 2
"""A mask term is 0 or at most ``MASK_FILL_FROM``: what lies below this hides."""
WHERE = 9
"""The first opset with Where."""


def mend_softmax(view: View, site: Site, rows: str) -> Probe | str:
    """Put one Where in front of the softmax.

    Where every mask is 0 the scores are what they were, bit by bit: only hidden ones are replaced.

    Args:
        view: the graph, changed in place.
        site: a layer with mask terms.
        rows: ``uniform`` or ``zeros``.

    Returns:
        What the proof looks at, or why the layer cannot be mended.
    """
    if site.spelled is not None:
        return "its softmax is spelled out, of which there is no repair"
    softmax = site.node
    scores = softmax.inputs[0]
    assert scores is not None
    if not site.terms:
        return "no mask terms were found"
    if (view.model.opset_imports.get("") or 0) < WHERE:
        return f"the graph's opset is older than {WHERE}, which has no Where"
    if site.replaced:
        return "plain numbers take the place of some of its scores"
    if any(term.node.graph is not softmax.graph for term in site.terms):
        return "its masks lie in the branch of an If, and its softmax does not"
    if any(not aligned(term.node.outputs[0], scores) for term in site.terms):
        return "between mask and softmax the scores change their layout"
    if not _along_keys(view, site, scores):
        return "its softmax does not go along the last axis alone"
    dtype = view.dtype(scores)
    if dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE):
        return f"its scores are {dtype.name}"
    bound_factors(view, site)
    build = Builder(view.model, softmax, f"repair/{softmax.name or softmax.outputs[0].name}")
    seen = build.conjunction([condition(build, term) for term in site.terms])
    lowest = build.const(np.finfo(dtype.numpy()).min, dtype.numpy())
    original = detached(softmax, [scores.name or ""])
    softmax.replace_input_with(0, build.op("Where", seen, scores, lowest))
    output = softmax.outputs[0]
    if rows == "zeros":
        behind = Builder(view.model, softmax, f"repair/{softmax.name or output.name}/rows", behind=True)
        softmax.name = softmax.name or output.name  # which is the Mul's from now on
        users = list(output.uses())
        kept = behind.op("Mul", output, behind.cast(seen, dtype))
        take_place(output, kept, users)
        output = kept
    terms = tuple((term.value.name or "", term.hides if term.chosen else None) for term in site.terms)
    return Probe(
        softmax.name or softmax.outputs[0].name or "", view.module(softmax), original, (scores.name or "",),
        output.name or "", terms, fill=weakest(site),
    )  # fmt: skip


def _along_keys(view: View, site: Site, scores: ir.Value) -> bool:
    """Whether a softmax goes along the last axis, as far as the graph tells."""
    axis, shape = site.axis(view), view.shape(scores)
    return axis is not None and (axis == -1 or shape is None or axis == len(shape) - 1)


def condition(build: Builder, term: Term) -> ir.Value:
    """True where the mask term shows the key."""
    if term.chosen:
        return build.op("Not", term.value) if term.hides else build.op("Identity", term.value)
    value = build.cast(term.value, ir.DataType.FLOAT)
    if term.node.op_type == "Sub" and term.value is term.node.inputs[1]:
        return build.op("Less", value, build.const(-HIDDEN, np.float32))
    return build.op("Greater", value, build.const(HIDDEN, np.float32))


def hidden(terms: Sequence[tuple[str, bool | None]], values: Mapping[str, np.ndarray]) -> np.ndarray:
    """Which keys the masks hide, as ``condition`` has it: bool, broadcast to all masks."""
    found = np.zeros((), dtype=bool)
    for name, hides in terms:
        value = values[name]
        found = found | (np.abs(value.astype(np.float64)) >= -HIDDEN if hides is None else value.astype(bool) == hides)
    return found


def bound_factors(view: View, site: Site) -> None:
    """Infinity times 0 is NaN for visible keys: such factors become the lowest float."""
    for node in view.backwards(term.value for term in site.terms):
        if node.op_type != "Mul":
            continue
        for index, value in enumerate(node.inputs):
            factor = view.scalar(value)
            if factor is not None and math.isinf(factor):
                build = Builder(view.model, node, f"repair/{node.name or node.outputs[0].name}")
                dtype = view.dtype(node.outputs[0]).numpy()
                limits = np.finfo(dtype)
                finite = build.const(limits.max if factor > 0 else limits.min, dtype)
                node.replace_input_with(index, finite)


def take_place(value: ir.Value, new: ir.Value, users: Sequence[tuple[ir.Node, int]]) -> None:
    """Let ``new`` take a value's place and name, for these users and as an output of the graph."""
    graph = value.graph
    name, value.name = value.name, f"{value.name}_replaced"
    new.name, new.type, new.shape = name, value.type, value.shape
    for user, index in users:
        user.replace_input_with(index, new)
    for index, given in enumerate(graph.outputs if graph is not None else ()):
        if given is value:
            graph.outputs[index] = new  # type: ignore[union-attr]


def aligned(start: ir.Value, end: ir.Value) -> bool:
    """Whether every way from a mask to the softmax keeps scores at their places."""
    level = [start]
    for _ in range(24):
        if any(value is end for value in level):
            return True
        users = {id(use.node): use.node for value in level for use in value.uses()}
        level = [value for node in users.values() if node.op_type in KEEPS_LAYOUT for value in node.outputs]
        if not level or len(level) > 512:
            return False
    return False
