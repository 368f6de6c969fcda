"""Masks that are added: a key that two of them hide gets twice the fill, and a row without keys prefers some."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.view import uncast
from trueport.words import number

if TYPE_CHECKING:
    import onnx_ir as ir

    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

DEPTH = 3
"""Products within products that are looked into."""
ABSORBS = -1e30
"""From here on a fill swallows every float32 score; two of them make -inf."""
ADDING = ("Attention", "QAttention", "MultiHeadAttention", "DecoderMaskedMultiHeadAttention")
"""ONNX Runtime's operators that add a fill where their mask hides."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Two or more fills at one layer, or a padding mask beside ``unidirectional`` in ONNX Runtime's own operators.

    Where no terms tell, numbers do: of a query that sees no key, some get more than others.
    """
    known: set[int] = set()
    for site in view.sites:
        fills = [term.fill for term in site.terms for _ in range(term.times)]
        own = own_fills(site)
        if len(fills) + len(own) < 2 or (not own and len(fills) == 2 and _exclusive(view, site)):
            continue
        if not own and (site.clamped or all(term.chosen for term in site.terms)):
            continue  # a Where replaces the fill of another, it adds nothing
        fills += own
        known.add(id(site.node))
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

    for site, best, worst in view.experiment.spreads:
        chosen = bool(site.terms) and all(term.chosen for term in site.terms)
        if id(site.node) not in known and not chosen:
            known.add(id(site.node))
            yield rule.finding(
                view, site.node,
                f"masks are not combined: of the keys of a query that sees none, some get {number(best)} and others "
                f"{number(worst)}: it attends those that only one mask hides",
                severity="note" if best <= ABSORBS else "error",
            )  # fmt: skip


def _exclusive(view: View, site: Site) -> bool:
    """Whether of two masks one has a factor, and the other 1 less it: a layer has the one or the other."""
    if len(site.terms) != 2:
        return False
    first, second = (_factors(term.value, DEPTH) for term in site.terms)
    for ones, others in ((first, second), (second, first)):
        for value in others:
            node = value.producer()
            rest = node is not None and (
                node.op_type == "Not" or (node.op_type == "Sub" and view.scalar(node.inputs[0]) == 1)
            )
            if node is not None and rest and node.inputs[-1] is not None:
                opposite = uncast(node.inputs[-1])
                if any(opposite is one for one in ones):
                    return True
    return False


def _factors(value: ir.Value | None, depth: int) -> list[ir.Value]:
    """What a mask is a product of, casts aside."""
    if value is None:
        return []
    value = uncast(value)
    node = value.producer()
    if node is None or node.op_type != "Mul" or not depth:
        return [value]
    return [factor for part in node.inputs for factor in _factors(part, depth - 1)]


def own_fills(site: Site) -> list[float]:
    """What an operator of ONNX Runtime adds by itself: for its padding mask, and for the future."""
    if site.node.domain != "com.microsoft" or site.node.op_type not in ADDING or site.slot("mask") is None:
        return []
    return [site.filter_value] * (2 if site.flag("unidirectional") else 1)


SUMMED_MASKS = Rule(
    "summed-masks",
    "Masks are added where they should be combined",
    "Combine the masks with And and fill once; `trueport repair` does.",
    check,
    repairable=True,
)
