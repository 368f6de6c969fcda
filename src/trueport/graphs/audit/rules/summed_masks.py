"""Masks that are added: a key that two of them hide gets twice the fill, and a row without keys prefers some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trueport.graphs.audit.rule import Rule
from trueport.words import number

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

ABSORBS = -1e30
"""From here on a fill swallows every float32 score; two of them make -inf."""
DEFAULT_FILL = -10000.0
"""``mask_filter_value`` of ONNX Runtime's operators."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Two or more fills at one layer, or a padding mask beside ``unidirectional`` in ONNX Runtime's own operators."""
    for site in view.sites:
        fills = [term.fill for term in site.terms for _ in range(term.times)]
        if adds_its_own(site):
            fill = filter_value(site)
            fills = [fill, fill]
        elif len(fills) < 2 or site.clamped or all(term.chosen for term in site.terms):
            continue  # a Where replaces the fill of another, it adds nothing
        total = sum(fills)
        words = " and ".join(number(fill) for fill in fills)
        if all(fill <= ABSORBS for fill in fills):
            yield rule.finding(
                view, site.node, f"masks of {words} are added: a query without keys attends those that one of them hides",
                severity="note",
            )  # fmt: skip
        else:
            yield rule.finding(
                view, site.node,
                f"masks of {words} are added up to {number(total)} instead of combined: a query without keys attends "
                "padding or the future",
            )  # fmt: skip


def adds_its_own(site: Site) -> bool:
    """Whether an operator adds its padding mask to its causal mask."""
    own = site.node.domain == "com.microsoft" and site.node.op_type in ("Attention", "QAttention", "MultiHeadAttention")
    return own and bool(site.flag("unidirectional")) and site.slot("mask") is not None


def filter_value(site: Site) -> float:
    """The fill of ONNX Runtime's operators."""
    attribute = site.node.attributes.get("mask_filter_value")
    return DEFAULT_FILL if attribute is None else float(attribute.value)


SUMMED_MASKS = Rule(
    "summed-masks",
    "Masks are added where they should be combined",
    "Combine the masks with And and fill once; `trueport repair` does.",
    check,
    repairable=True,
)
