"""Seven rules of one experiment: keys that a mask hides are seen all the same, or those that it shows are not."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from trueport.graphs.audit.experiment.judge import (
    ANY_ROW,
    FIRST_ROW,
    INVERTED,
    ITSELF,
    MULTIPLIED,
    OTHER,
    PADDING,
    QUERY_AXIS,
)
from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.rules.right_padding_only import RIGHT_PADDING_ONLY

if TYPE_CHECKING:
    from trueport.graphs.audit.experiment.judge import Leak
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.view import View

WORDS = {
    INVERTED: "the keys that {mask} hides are seen, and its tokens hidden",
    FIRST_ROW: "every row hides what the first row of {mask} hides",
    QUERY_AXIS: "{mask} hides queries instead of keys: tokens attend padding",
    MULTIPLIED: "{node} multiplies by {mask}, and scores of hidden keys become 0 instead of -inf",
    OTHER: "tokens attend keys that {mask} hides",
    ANY_ROW: "every row hides what any row of {mask} hides: tokens see less of their own row in a batch than alone",
    PADDING: "tokens that {mask} shows are hidden where others are padding",
    ITSELF: "some tokens do not see themselves, and others do",
}


def _checks(kind: str) -> Callable[[Rule, View], Iterator[Finding]]:
    def check(rule: Rule, view: View) -> Iterator[Finding]:
        """The layers that see hidden keys for this reason."""
        return _found(rule, view, (leak for leak in view.experiment.leaks if leak.kind == kind))

    return check


def _found(rule: Rule, view: View, leaks: Iterable[Leak]) -> Iterator[Finding]:
    """One finding for each layer; those that are given lengths are another rule's."""
    leaks = list(leaks)
    known = {finding.node for finding in RIGHT_PADDING_ONLY.check(RIGHT_PADDING_ONLY, view)} if leaks else set()
    for leak in leaks:
        severity = "error" if leak.certain else "warning"
        finding = rule.finding(view, leak.site.node, _words(view, leak), severity=severity)
        if finding.node not in known:
            yield finding


def _words(view: View, leak: Leak) -> str:
    name = "" if leak.node is None else leak.node.name or leak.node.outputs[0].name or leak.node.op_type
    words = WORDS[leak.kind].format(mask=leak.mask, node=name)
    axis, shape = leak.site.axis(view), view.shape(leak.site.given)
    last = axis in (None, -1) or (shape is not None and axis == len(shape) - 1)
    if leak.kind == QUERY_AXIS and not leak.site.fused and not last:
        words += f", as the softmax goes along axis {axis}"
    return words + (f": {name} joins masks by Or" if leak.kind == OTHER and name else "")


def _hiding(rule: Rule, view: View) -> Iterator[Finding]:
    """The layers that hide tokens, and no padding is seen but by those that have no key left."""
    blinded = (leak for leak in view.experiment.leaks if leak.kind in (ANY_ROW, PADDING))
    return _found(rule, view, (*view.experiment.hiding, *blinded))


def _misplaced(rule: Rule, view: View) -> Iterator[Finding]:
    """A warning: layers that are meant so exist."""
    words = "no token sees itself, or every token sees what follows it and nothing before it"
    for site in view.experiment.misplaced:
        yield rule.finding(view, site.node, words, severity="warning")


MISPLACED_CAUSAL = Rule(
    "misplaced-causal",
    "A causal mask lies at the wrong place",
    "Show the keys up to the query's own, counted from the past's first; `trueport repair` does not mend this.",
    _misplaced,
)
MULTIPLIED_MASK = Rule(
    "multiplied-mask",
    "A mask is multiplied instead of added",
    "Choose with Where and the lowest float, after queries and keys are multiplied; `trueport repair` does not mend this.",
    _checks(MULTIPLIED),
)
INVERTED_MASK = Rule(
    "inverted-mask",
    "A mask is read the wrong way round",
    "Take the Not away, or put one in: 1 is a token and 0 padding; `trueport repair` does not mend this.",
    _checks(INVERTED),
)
QUERY_AXIS_MASK = Rule(
    "query-axis-mask",
    "A padding mask lies on the axis of the queries",
    "Unsqueeze the mask to (batch, 1, 1, keys); `trueport repair` does not mend this.",
    _checks(QUERY_AXIS),
)
FIRST_ROW_MASK = Rule(
    "first-row-mask",
    "The first row's mask is used for the whole batch",
    "Keep the mask's batch axis instead of taking its entry 0; `trueport repair` does not mend this.",
    _checks(FIRST_ROW),
)
LEAKING_MASK = Rule(
    "leaking-mask",
    "Keys that a mask hides are seen",
    "Combine masks with And: a key is seen where every mask shows it; `trueport repair` does not mend this.",
    _checks(OTHER),
)
HIDDEN_TOKENS = Rule(
    "hidden-tokens",
    "Tokens that a mask shows are hidden",
    "Hide from a row its own padding alone, and keep the mask's batch axis; `trueport repair` does not mend this.",
    _hiding,
)
