"""Fills that scores can reach: a hidden key with a large score is then no longer hidden."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trueport.graphs.audit.norms import chance, score_spread
from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.rules.summed_masks import ABSORBS
from trueport.graphs.audit.terms import MASK_FILL_FROM
from trueport.words import number

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

LIKELY = 1e-9
"""Per pair of query and key: about one key in a thousand prompts of a thousand tokens."""
TRAINED = 4.0
"""How much further than at random the scores of trained weights may spread."""
WEAK = -1000.0
"""A fill that is suspect where the weights tell nothing."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """The weakest fill of each layer, against the spread of its scores."""
    for site in view.sites:
        fill = weakest_fill(site)
        if fill is None or fill <= ABSORBS:
            continue
        if site.bound is not None and fill + 2 * site.bound < MASK_FILL_FROM:
            continue  # no score behind its tanh comes near
        spread = score_spread(view, site)
        if spread is None:
            if fill >= WEAK:
                yield rule.finding(
                    view, site.node, f"hidden keys get {number(fill)}, which a score may reach", severity="warning"
                )
            continue
        likely, pessimistic = chance(fill, spread), chance(fill, TRAINED * spread)
        if max(likely, pessimistic) < LIKELY:
            continue
        yield rule.finding(
            view,
            site.node,
            f"hidden keys get {number(fill)}, and by the weights' norms scores spread by {number(spread)}: a hidden key "
            f"outweighs a visible one with a chance of about {number(max(likely, pessimistic))}"
            + ("" if likely >= LIKELY else " where trained weights align four times as much"),
            severity="error" if likely >= LIKELY else "warning",
        )


def weakest_fill(site: Site) -> float | None:
    """The fill that leaks first; None where nothing is filled."""
    fills = [term.fill for term in site.terms if math.isfinite(term.fill)]
    if site.fused and site.node.domain == "com.microsoft" and site.slot("mask") is not None:
        fills.append(site.filter_value)
    return max(fills, default=None)


REACHABLE_FILL = Rule(
    "reachable-fill",
    "A fill value is within reach of real scores",
    "Choose with Where and the lowest float instead of adding; `trueport repair` does.",
    check,
    repairable=True,
)
