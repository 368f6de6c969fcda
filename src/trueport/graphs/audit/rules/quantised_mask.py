"""Masks that are quantised together with the scores: one step is as large as the fill, or the fill is cut off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.sites import PRODUCTS, carries_scores
from trueport.graphs.audit.terms import MASK_FILL_FROM
from trueport.words import number

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

COARSE = 1.0
"""A step from which on a softmax reads little of its scores: half of one is a factor of 1.6 either way."""
LONGEST = 64
"""Nodes between softmax and product that are looked at."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Every rounding of scores between the product and the softmax; and softmaxes of integers that a mask reaches."""
    for site in view.sites:
        for node in _roundings(view, site):
            if _joined(view, site, node):
                yield from _judged(rule, view, node)
    for node in view.nodes:
        if node.op_type == "QLinearSoftmax" and id(node.inputs[0]) in view.masked:
            yield from _judged(rule, view, node)


def _judged(rule: Rule, view: View, node: ir.Node) -> Iterator[Finding]:
    """A node whose second input is the step of its masked scores."""
    step, steps = _grid(view, node)
    if step is None:
        return
    if step >= COARSE:
        words = f"scores are rounded to multiples of {number(step)}: the softmax sees the masks and little else"
        yield rule.finding(view, node, words)
    elif steps * step < -MASK_FILL_FROM:
        words = f"masked scores are cut off: a hidden key lies at most {number(steps * step)} below a visible one"
        yield rule.finding(view, node, words, severity="warning")


def _roundings(view: View, site: Site) -> Iterator[ir.Node]:
    """The QuantizeLinear nodes that scores go through, from the softmax up."""
    level: list[ir.Value | None] = [site.given]
    seen: set[int] = set()
    while level and len(seen) < LONGEST:
        value = level.pop()
        node = value.producer() if value is not None else None
        if node is None or id(node) in seen or node.op_type in PRODUCTS:
            continue
        seen.add(id(node))
        if node.op_type == "QuantizeLinear" and carries_scores(view, node.inputs[0]):
            yield node
        level += node.inputs


def _grid(view: View, node: ir.Node) -> tuple[float | None, int]:
    """The size of a step, and how many there are; no size where it is not one stored number."""
    step = view.scalar(node.inputs[1])
    given = view.dtype(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] is not None else ir.DataType.UINT8
    if step is None or given is None or given.numpy().kind not in "iu":
        return None, 0
    limits = np.iinfo(given.numpy())
    return abs(step), int(limits.max) - int(limits.min)


def _joined(view: View, site: Site, node: ir.Node) -> bool:
    """Whether a mask was put into the scores before they are rounded."""
    made = {id(other) for other in view.backwards([node.inputs[0]])}
    return any(id(term.node) in made for term in site.terms)


QUANTISED_MASK = Rule(
    "quantised-mask",
    "A mask is quantised together with the scores",
    "Leave the nodes behind the product of queries and keys, up to the softmax and with it, out of the quantisation.",
    check,
)
