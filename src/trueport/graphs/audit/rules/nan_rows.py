"""Ways from -inf to NaN: a row in which every key is hidden, or -inf times 0."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.graphs.audit.rule import Rule

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.terms import Term
    from trueport.graphs.audit.view import View

VANISHES = -104.0
"""From here down float32's exponential is 0."""
GUARDS = {"ReduceMax", "ReduceMin", "ReduceSum", "ReduceProd", "IsNaN", "IsInf"}
"""What a mask goes through where somebody looks for rows without keys."""
SCATTERS = {"ScatterND", "ScatterElements"}


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """-inf at layers whose masks depend on the input, unguarded; and products with -inf."""
    for site in view.sites:
        if _vanishes(view, site):
            words = "a row in which all keys are hidden has only weights of 0, and is divided by their sum"
            yield rule.finding(view, site.node, words)
            continue
        if not _fills_with_inf(site) or _guarded(view, site) or _marked(view, site) or not _from_input(view, site):
            continue
        yield rule.finding(view, site.node, "hidden keys get -inf, and a row in which all are hidden becomes NaN")
    for node in view.nodes:
        if node.op_type == "Mul" and any(id(value) in view.masked for value in node.inputs):
            factors = [view.scalar(value) for value in node.inputs]
            if any(factor is not None and math.isinf(factor) for factor in factors):
                yield rule.finding(view, node, "a mask is multiplied by infinity: 0 times infinity is NaN")


def _vanishes(view: View, site: Site) -> bool:
    """Whether a softmax is written out so that it divides 0 by 0, or its weights are: nothing is added to the sum.

    So it is where a mask multiplies what is summed, and where no maximum is taken off before the exponential.
    """
    behind, written = site.behind, site.spelled
    if behind is not None and not behind.guarded and id(behind.factor) in view.masked:
        return True
    if written is None or written.guarded or _guarded(view, site):
        return False
    if written.factor is not None and id(written.factor) in view.masked:
        return True
    return not written.shifted and any(term.fill <= VANISHES and id(term.value) in view.masked for term in site.terms)


def _fills_with_inf(site: Site) -> bool:
    """ONNX's own Attention gives zeros there, GroupQueryAttention too; the others give NaN."""
    if site.spelled is not None and not site.spelled.shifted:
        return False
    if site.zeros:
        return False
    own = site.fused and site.slot("mask") is not None and site.filter_value == -math.inf
    return own or any(term.fill == -math.inf for term in site.terms)


def _from_input(view: View, site: Site) -> bool:
    """A mask that only hides the future, or what lies far away, leaves every query itself."""
    values = [value for term in site.terms if term.fill == -math.inf for value in _deciders(view, term)]
    if site.fused and site.slot("mask") is not None and site.filter_value == -math.inf:
        values += site.mask_values()
    return any(id(value) in view.masked for value in values)


def _deciders(view: View, term: Term) -> list[ir.Value]:
    """What decides where -inf stands: the conditions of the Wheres that put it there, else the term itself."""
    if term.chosen:
        return [term.value]
    wheres = (node for node in view.backwards([term.value]) if node.op_type == "Where")
    found = [node.inputs[0] for node in wheres if any(view.scalar(branch) == -math.inf for branch in node.inputs[1:])]
    return [condition for condition in found if condition is not None] or [term.value]


def _guarded(view: View, site: Site) -> bool:
    """Whether rows without keys are looked for: before the softmax in the mask, or after it."""
    if site.fused or site.guarded:
        return site.guarded
    level = list(site.node.outputs)
    for _ in range(4):
        users = [use.node for value in level for use in value.uses()]
        if any(user.op_type in ("Where", "IsNaN") for user in users):
            return True
        level = [value for user in users if user.op_type in ("Cast", "Identity", "Reshape") for value in user.outputs]
    return any(node.op_type in GUARDS for node in view.backwards(term.value for term in site.terms))


def _marked(view: View, site: Site) -> bool:
    """Whether a 1 is written into a mask of zeros, as sound models mark a row's last position: one is always seen."""
    return any(
        node.op_type in SCATTERS and view.scalar(node.inputs[0]) == 0 and view.scalar(node.inputs[2]) not in (None, 0)
        for node in view.backwards(term.value for term in site.terms)
    )


NAN_ROWS = Rule(
    "nan-rows",
    "A row without visible keys becomes NaN",
    "Fill with the lowest float and set such rows after the softmax; `trueport repair` does.",
    check,
    repairable=True,
)
