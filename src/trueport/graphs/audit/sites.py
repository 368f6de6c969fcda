"""Attention layers of a graph: operators that are one, and Softmax over the product of queries and keys."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.graphs.audit.bodies import inner_graphs
from trueport.graphs.audit.softmax import masked_behind, softmax_axis
from trueport.graphs.audit.terms import Fills, Term
from trueport.graphs.audit.view import uncast

if TYPE_CHECKING:
    from trueport.graphs.audit.softmax import Behind, Spelled
    from trueport.graphs.audit.view import View

SLOTS: dict[tuple[str, str], dict[str, int]] = {
    ("", "Attention"): {"mask": 3, "past": 4, "lengths": 6},
    ("com.microsoft", "Attention"): {"mask": 3, "past": 4, "bias": 5},
    ("com.microsoft", "QAttention"): {"mask": 5, "past": 8},
    ("com.microsoft", "MultiHeadAttention"): {"mask": 4, "bias": 5, "past": 6},
    ("com.microsoft", "DecoderMaskedMultiHeadAttention"): {"mask": 3, "bias": 4, "past": 5},
    ("com.microsoft", "GroupQueryAttention"): {"past": 3, "lengths": 5, "positions": 9, "bias": 10},
}
"""Inputs of the attention operators that masks come in by (onnx operators 23 and 24; ONNX Runtime's ContribOperators.md)."""
KEEPS = {"Identity", "Cast", "CastLike", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Tanh", "Slice", "Concat",
         "Dropout", "Flatten", "Expand", "Pad", "Neg", "Split", "Gather", "GatherElements", "Relu", "Min",
         "ScatterND", "ScatterElements", "QuantizeLinear", "DequantizeLinear"}  # fmt: skip
"""Operators on the way from scores to softmax that hide nothing."""
PRODUCTS = {"MatMul", "FusedMatMul", "Einsum", "Gemm", "MatMulInteger"}
"""Operators that scores come from."""

DEFAULT_FILL = -10000.0
"""``mask_filter_value`` of ONNX Runtime's operators."""
MOST_BRANCHES = 3
"""Ifs, one behind or within the other, between a softmax and its scores."""
MOST_DECIDED = 512
"""Values of one condition that are looked at."""
DECIDES = {"And", "Not", "Identity", "Cast", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"}
"""Operators that make one condition of several masks."""


@dataclass(frozen=True)
class Site:
    """One attention layer.

    Attributes:
        node: the attention operator, or the Softmax.
        scores: the MatMul of queries and keys; None for an operator.
        terms: the masks between scores and softmax, the last one first; for an operator those in its bias.
        clamped: whether summed masks are clipped from below.
        bound: the largest score where masks meet scores that were capped by tanh; None where they were not.
        given: the masked scores that the softmax reads; None for an operator.
        replaced: whether a Where puts a plain number in the place of some scores.
        guarded: whether one does so behind every -inf.
        behind: the mask of the weights, which are then divided by their sum.
        spelled: the softmax, where it is written out; ``node`` is then its last one.
    """

    node: ir.Node
    scores: ir.Node | None = None
    terms: tuple[Term, ...] = ()
    clamped: bool = False
    bound: float | None = None
    given: ir.Value | None = None
    spelled: Spelled | None = None
    replaced: bool = False
    guarded: bool = False
    behind: Behind | None = None

    @property
    def fused(self) -> bool:
        """Whether one operator is the whole layer."""
        return self.scores is None

    def slot(self, name: str) -> ir.Value | None:
        """An operator's input by its role: ``mask``, ``bias``, ``past``, ``lengths``, ``positions``."""
        index = SLOTS.get((_domain(self.node), self.node.op_type), {}).get(name)
        return None if index is None or index >= len(self.node.inputs) else self.node.inputs[index]

    def mask_values(self) -> list[ir.Value]:
        """What may carry a mask into this layer."""
        if not self.fused:
            factor = None if self.spelled is None else self.spelled.factor
            weights = None if self.behind is None else self.behind.factor
            return [value for value in (self.given, factor, weights) if value is not None]
        slots = (self.slot(name) for name in ("mask", "bias", "lengths"))
        return [value for value in slots if value is not None]

    def axis(self, view: View) -> int | None:
        """The axis of the keys, along which a softmax goes; None where it does not tell."""
        return softmax_axis(view, self.node) if self.spelled is None else self.spelled.axis

    @property
    def filter_value(self) -> float:
        """What ONNX Runtime's operators add where their mask hides."""
        attribute = self.node.attributes.get("mask_filter_value")
        return DEFAULT_FILL if attribute is None else float(attribute.value)

    @property
    def zeros(self) -> bool:
        """Whether a query that sees no key gets zeros, from an operator that looks for such queries."""
        return self.fused and (self.node.domain != "com.microsoft" or self.node.op_type == "GroupQueryAttention")

    def flag(self, name: str) -> int:
        """An integer attribute, 0 where it is not set."""
        attribute = self.node.attributes.get(name)
        return 0 if attribute is None else int(attribute.value)


def _domain(node: ir.Node) -> str:
    return "" if node.domain == "ai.onnx" else node.domain


def find_sites(view: View) -> list[Site]:
    """Every attention layer that can be told as one."""
    fills = Fills(view)
    found = []
    for node in view.nodes:
        if (_domain(node), node.op_type) in SLOTS:
            site = Site(node)
            bias = site.slot("bias") if node.domain == "com.microsoft" else site.slot("mask")
            fill = fills.of(bias)
            terms = fills.inside(bias)
            if fill is not None and bias is not None:
                terms = fills.summands(Term(node, bias, fill))
            found.append(Site(node, None, tuple(terms)))
        elif (given := _argument(view, node)) is not None:
            site_ = _decomposed(view, fills, node, given)
            if site_ is not None:
                written = view.spelled.get(id(node))
                found.append(replace(site_, spelled=written, behind=masked_behind(view, node)))
    return found


def _argument(view: View, node: ir.Node) -> ir.Value | None:
    """What a softmax is of, by its operator or written out; None for other nodes."""
    if node.op_type == "Softmax" and node.inputs:
        return node.inputs[0]
    return view.spelled[id(node)].given if id(node) in view.spelled else None


def _decomposed(view: View, fills: Fills, softmax: ir.Node, given: ir.Value, depth: int = 0) -> Site | None:
    """Walk from the softmax of ``given`` up to the product of two computed matrices, ``depth`` Ifs being behind it."""
    terms: list[Term] = []
    clamped = replaced = guarded = False
    bound: float | None = None
    cap = 1.0
    value: ir.Value | None = given
    for _ in range(200):
        value = view.source(value)
        node = value.producer() if value is not None else None
        if node is None:
            return None
        kind, inputs = node.op_type, node.inputs
        if kind in PRODUCTS or kind == "If":
            if kind != "If" and any(view.is_weight(operand) for operand in inputs):
                return None
            end = None if kind == "If" else node
            site = Site(softmax, end, _uncovered(terms), clamped, bound, given, replaced=replaced, guarded=guarded)
            return site if end is not None else _in_branches(view, fills, site, node, value, cap, depth)
        if kind == "Where":
            scalars = [view.scalar(branch) for branch in inputs[1:3]]
            filled = [s is not None and s <= fills.limit(inputs[0]) for s in scalars]
            if filled[0] == filled[1]:
                # Rows without keys are looked after, or a mask is read that hides nothing: numbers tell.
                kept = [
                    scalar is None and carries_scores(view, branch)
                    for scalar, branch in zip(scalars, inputs[1:3], strict=True)
                ]
                if kept[0] == kept[1] or scalars[kept.index(False)] is None:
                    return None
                replaced = True
                guarded = guarded or all(term.fill > -math.inf for term in terms)
                value = inputs[1 + kept.index(True)]
                continue
            assert inputs[0] is not None
            fill = float(scalars[filled.index(True)] or 0)
            fill = fill if bound is None else max(fill, -bound)
            terms.append(Term(node, inputs[0], fill, True, filled[0], factor=cap if bound is None else 1.0))
            value = inputs[1 + filled.index(False)]
        elif kind in ("Add", "Sub", "Mul", "Div", "Sum"):
            before = len(terms)
            value = _through(view, fills, node, terms)
            if bound is not None:
                # What is added before the tanh weighs no more behind it than the cap.
                terms[before:] = [replace(term, fill=max(term.fill, -bound)) for term in terms[before:]]
            else:
                terms[before:] = [replace(term, factor=cap) for term in terms[before:]]
            cap *= _factor(view, node)
        elif kind in ("Max", "Clip"):
            # A limit from below after the sum makes all hidden keys alike.
            clamped = clamped or not terms
            value = inputs[0]
        elif kind in KEEPS:
            bound = abs(cap) if kind == "Tanh" else bound
            value = inputs[0]
        else:
            return None
    return None


def _in_branches(
    view: View, fills: Fills, site: Site, node: ir.Node, value: ir.Value | None, cap: float, depth: int
) -> Site | None:
    """A layer whose way leads on in both branches of an If: with the masks of the branch that has more of them.

    Args:
        view, fills: the graph.
        site: what lies between the If and the softmax.
        node, value: the If, and its output.
        cap: what scores are multiplied by behind it.
        depth: Ifs so far.
    """
    if depth >= MOST_BRANCHES or value is None:
        return None
    place = list(node.outputs).index(value)
    found = [
        _decomposed(view, fills, site.node, graph.outputs[place], depth + 1)
        for graph in inner_graphs(node)
        if len(graph.outputs) > place
    ]
    inner = max((one for one in found if one is not None), key=lambda one: len(one.terms), default=None)
    if inner is None or None in found:
        return None
    weakest = -math.inf if site.bound is None else -site.bound
    terms = [replace(term, fill=max(term.fill, weakest), factor=term.factor * cap) for term in inner.terms]
    return replace(
        site, scores=inner.scores, terms=_uncovered([*site.terms, *terms]),
        clamped=site.clamped or (inner.clamped and not site.terms), bound=inner.bound if site.bound is None else site.bound,
        replaced=site.replaced or inner.replaced, guarded=site.guarded or inner.guarded,
    )  # fmt: skip


def _factor(view: View, node: ir.Node) -> float:
    """What a Mul or a Div by one number multiplies scores by."""
    if node.op_type not in ("Mul", "Div"):
        return 1.0
    numbers = [number for number in map(view.scalar, node.inputs) if number is not None]
    factor = numbers[0] if numbers else 1.0
    return factor if node.op_type == "Mul" or factor == 0 else 1 / factor


def _uncovered(terms: list[Term]) -> tuple[Term, ...]:
    """The terms without those that a Where nearer to the softmax decides anew: its condition is made from them."""
    found: list[Term] = []
    decided: set[int] = set()
    for term in terms:
        if id(uncast(term.value)) not in decided:
            found.append(term)
        waiting = [term.value] if term.chosen else []
        while waiting and len(decided) < MOST_DECIDED:
            value = waiting.pop()
            node = value.producer()
            if id(value) not in decided and node is not None and node.op_type in DECIDES:
                waiting += [operand for operand in node.inputs if operand is not None]
            decided.add(id(value))
    return tuple(found)


def _through(view: View, fills: Fills, node: ir.Node, terms: list[Term]) -> ir.Value | None:
    """The operand that holds the scores; mask terms in the other one are noted."""
    if node.op_type == "Sum":
        return _summed(view, fills, node, terms)
    first, second = node.inputs[:2]
    if node.op_type == "Sub":
        fill = fills.positive(second)
        if fill is not None and second is not None:
            terms.append(Term(node, second, fill))
        return second if carries_scores(view, second) and not carries_scores(view, first) else first
    if node.op_type == "Add":
        for operand, other in ((first, second), (second, first)):
            fill = fills.of(operand)
            if fill is not None and operand is not None:
                terms += fills.summands(Term(node, operand, fill))
                return other
    if view.scalar(second) is not None or node.op_type == "Div":
        return first
    if view.scalar(first) is not None:
        return second
    sides = [(carries_scores(view, first), first, second), (carries_scores(view, second), second, first)]
    for has, scores, other in sides:
        if has:
            if node.op_type == "Add":
                terms += fills.inside(other)
            return scores
    return None


def _summed(view: View, fills: Fills, node: ir.Node, terms: list[Term]) -> ir.Value | None:
    """The scores among any number of summands."""
    scores = next((value for value in node.inputs if carries_scores(view, value)), None)
    for value in node.inputs:
        fill = fills.of(value)
        if value is not scores and value is not None:
            terms += fills.inside(value) if fill is None else fills.summands(Term(node, value, fill))
    return scores


def carries_scores(view: View, value: ir.Value | None) -> bool:
    """Whether scores lie a few nodes above ``value``, twice as many where each of them is rounded."""
    level = [value]
    for _ in range(24):
        sources = [view.source(value) for value in level]
        nodes = {id(n): n for v in sources if v is not None and (n := v.producer()) is not None}
        for node in nodes.values():
            if node.op_type in PRODUCTS and not any(map(view.is_weight, node.inputs)):
                return True
        follow = [n for n in nodes.values() if n.op_type in KEEPS | {"Add", "Sub", "Mul", "Div", "Where", "Max", "Sum"}]
        level = [v for n in follow for v in n.inputs]
        level += [v for n in nodes.values() if n.op_type == "If" for graph in inner_graphs(n) for v in graph.outputs]
        if not level:
            return False
    return False
