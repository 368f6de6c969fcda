"""ONNX Runtime's Attention, QAttention and MultiHeadAttention, written out with masks that are right on every row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.norms import score_spread
from trueport.graphs.audit.rules.right_padding_only import counted
from trueport.graphs.repair.builder import OLDEST, Builder
from trueport.graphs.repair.probe import Probe, detached, weakest
from trueport.graphs.repair.standard import is_standard, mend_attention
from trueport.graphs.repair.terms import aligned, bound_factors, condition, take_place

if TYPE_CHECKING:
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

DOUBLE_FROM = 8.0
"""Spread of scores from which on float32 loses 1e-5 of the softmax: an error of 1.2e-7 times four spreads, summed."""
REFUSED = ("do_rotary", "past_present_share_buffer")
SHARED = {
    "Attention": {6: "past_sequence_length"},
    "MultiHeadAttention": {8: "past_sequence_length", 9: "cache_indirection"},
}
"""Inputs that say that the past is a shared buffer, or another beam's."""


@dataclass(frozen=True)
class Heads:
    """Queries, keys and values, each (batch, heads, length, size), past included.

    Attributes:
        presents: what the operator gives besides: keys and values for the next step.
        size: of a query's head.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    presents: tuple[ir.Value, ...]
    size: int


def mend_operator(view: View, site: Site, rows: str, precision: str) -> Probe | str:
    """Replace an operator by MatMul, one Where and Softmax.

    Args:
        view: the graph, changed in place.
        site: a layer that is one operator.
        rows: ``uniform`` or ``zeros``.
        precision: ``float32``, ``float64``, or ``auto``: float64 where the weights' norms say that scores are large.

    Returns:
        What the proof looks at, or why the layer cannot be mended.
    """
    node = site.node
    if is_standard(node):
        return mend_attention(view, site, rows, precision)
    reason = _obstacle(view, site)
    if reason:
        return reason
    spread = score_spread(view, site)
    bound_factors(view, site)
    double = precision == "float64" or (precision == "auto" and spread is not None and spread > DOUBLE_FROM)
    real = ir.DataType.DOUBLE if double else ir.DataType.FLOAT
    build = Builder(view.model, node, f"repair/{node.name or node.outputs[0].name}")
    names = [value.name or "" if value is not None else "" for value in node.inputs]
    original = detached(node, names)
    constants = {i: array for i, value in enumerate(node.inputs) if (array := view.array(value)) is not None}
    raw = site.slot("mask")
    mask = raw if raw is None else _raw_mask(view, raw)
    given = view.dtype(node.outputs[0])
    heads = _separate(view, build, site, real, given)
    scale = node.attributes.get("scale")
    factor = float(scale.value) if scale is not None and scale.value else 1 / float(np.sqrt(heads.size))
    scores = build.op("MatMul", heads.query, build.op("Transpose", heads.key, perm=[0, 1, 3, 2]))
    scores = build.op("Mul", scores, build.const(factor, real.numpy()))
    bias = site.slot("bias")
    if bias is not None:
        scores = build.op("Add", scores, build.cast(bias, real))
    conditions = [condition(build, term) for term in site.terms]
    if site.flag("unidirectional"):
        conditions.append(_causal(build, heads))
    if mask is not None:
        conditions.append(_padding(view, build, site, mask, heads))
    seen = build.conjunction(conditions) if conditions else None
    if seen is not None:
        lowest = build.const(np.finfo(real.numpy()).min, real.numpy())
        scores = build.op("Where", seen, scores, lowest)
    weights = build.op("Softmax", scores, axis=-1)
    if seen is not None and rows == "zeros":
        weights = build.op("Mul", weights, build.cast(seen, real))
    mixed = build.op("Transpose", build.op("MatMul", weights, heads.value), perm=[0, 2, 1, 3])
    output = build.cast(build.op("Reshape", mixed, build.const([0, 0, -1])), given)
    result = _replace(node, [output, *heads.presents])
    terms = tuple((term.value.name or "", None) for term in site.terms)
    name = "" if mask is None else mask.name or ""
    return Probe(
        node.name or result, view.module(node), original, tuple(names), result, terms, name, constants, double, weakest(site)
    )  # fmt: skip


def _obstacle(view: View, site: Site) -> str:
    """Why an operator cannot be written out; empty where it can."""
    node = site.node
    if node.op_type not in ("Attention", "QAttention", "MultiHeadAttention") or node.domain != "com.microsoft":
        return f"{node.op_type} is not written out"
    if (view.model.opset_imports.get("") or 0) < OLDEST:
        return f"the graph's opset is older than {OLDEST}"
    refused = [name for name in REFUSED if site.flag(name)]
    given = dict(enumerate(node.inputs))
    refused += [name for index, name in SHARED.get(node.op_type, {}).items() if given.get(index) is not None]
    if refused:
        return f"{refused[0]} is not written out"
    if node.op_type == "MultiHeadAttention" and len(node.outputs) > 3:
        return "its scores are read too"
    if node.op_type == "Attention" and given.get(2) is None:
        return "it has no bias, and ONNX Runtime's processes end where they run such a one"
    mask = site.slot("mask")
    shape = view.shape(mask)
    if mask is not None and counted(view, mask) is None:
        if shape is None or len(shape) not in (1, 2, 3):
            return "the shape of its mask is not known" if shape is None else f"its mask has {len(shape)} axes"
        if len(shape) == 1 and _starts_at(view, site, shape[0]) is None:
            return "whether its mask holds lengths, or starts and ends, is not known"
    bias = site.slot("bias")
    if bias is not None and any(t.value is not bias and not aligned(t.node.outputs[0], bias) for t in site.terms):
        return "between mask and bias the scores change their layout"
    if node.op_type == "MultiHeadAttention":
        ranks = [view.shape(value) for value in node.inputs[:3]]
        if len(node.inputs) < 3 or any(rank is None or len(rank) != 3 for rank in ranks):
            return "its queries, keys or values are packed"
        assert ranks[0] is not None
        return "" if isinstance(ranks[0][-1], int) else "the size of its heads is not known"
    weights = view.shape(node.inputs[1])
    return "" if weights is not None and isinstance(weights[-1], int) else "the shape of its weights is not known"


def _starts_at(view: View, site: Site, size: int | str | None) -> bool | None:
    """Of a mask with one axis: whether ends and starts lie behind each other (2 x batch); None where nothing tells."""
    given = view.shape(site.node.inputs[0])
    batch = given[0] if given else None
    if size is None or batch is None:
        return None
    if size == batch:
        return False
    return True if isinstance(size, int) and isinstance(batch, int) and size == 2 * batch else None


def _raw_mask(view: View, mask: ir.Value) -> ir.Value:
    """The mask (batch, keys) that the operator's lengths were counted from; the mask itself where it says more."""
    raw = counted(view, mask)
    return mask if raw is None else raw


def _separate(view: View, build: Builder, site: Site, real: ir.DataType, given: ir.DataType) -> Heads:
    """The operator's projections and its past, in the dtype ``real``; what it gives of them has the dtype ``given``."""
    node = site.node
    count = int(node.attributes["num_heads"].value)
    if node.op_type == "MultiHeadAttention":
        parts, sizes = _given(view, build, node, real)
    else:
        parts, sizes = _projected(view, build, node, real)
    query, key, value = (
        build.op("Transpose", build.op("Reshape", part, build.const([0, 0, count, -1])), perm=[0, 2, 1, 3])
        for part in parts
    )
    past = site.slot("past")
    stacked = node.op_type != "MultiHeadAttention"  # one past (2, batch, heads, length, size), or two
    if past is not None:
        second = None if stacked else node.inputs[7]
        pair = [build.op("Gather", past, build.const(i), axis=0) for i in (0, 1)] if stacked else [past, second]
        key, value = (
            build.op("Concat", build.cast(earlier, real), own, axis=2)  # type: ignore[arg-type]
            for earlier, own in zip(pair, (key, value), strict=True)
        )
    presents: tuple[ir.Value, ...] = ()
    if len(node.outputs) > 1 and stacked:
        both = [build.unsqueeze(build.cast(part, given), [0]) for part in (key, value)]
        presents = (build.op("Concat", *both, axis=0),)
    elif len(node.outputs) > 1:
        presents = tuple(build.cast(part, given) for part in (key, value))
    return Heads(query, key, value, presents, sizes // count)


def _projected(view: View, build: Builder, node: ir.Node, real: ir.DataType) -> tuple[list[ir.Value], int]:
    """Attention's and QAttention's own projection (batch, length, 3 x hidden), cut in three; the width of queries."""
    inputs = [*node.inputs, *[None] * 8]
    weights = view.shape(node.inputs[1])
    assert weights is not None and isinstance(weights[-1], int)
    sizes = node.attributes.get("qkv_hidden_sizes")
    widths = [int(size) for size in sizes.value] if sizes is not None else [weights[-1] // 3] * 3
    if node.op_type == "QAttention":
        # The weights stay the integers that they are.
        whole = build.op("MatMulInteger", inputs[0], inputs[1], inputs[6], inputs[7])
        scales = [build.cast(scale, real) for scale in inputs[3:5] if scale is not None]
        whole = build.op("Mul", build.cast(whole, real), build.op("Mul", *scales))
    else:
        operands = [build.cast(value, real) for value in inputs[:2] if value is not None]
        whole = build.op("MatMul", *operands)
    if inputs[2] is not None:
        whole = build.op("Add", whole, build.cast(inputs[2], real))
    edges = [0, widths[0], widths[0] + widths[1], sum(widths)]
    return [build.part(whole, edges[i], edges[i + 1], 2) for i in range(3)], widths[0]


def _given(view: View, build: Builder, node: ir.Node, real: ir.DataType) -> tuple[list[ir.Value], int]:
    """MultiHeadAttention's queries, keys and values (batch, length, hidden), their biases added."""
    parts = [build.cast(value, real) for value in node.inputs[:3] if value is not None]
    shape = view.shape(node.inputs[0])
    assert shape is not None and isinstance(shape[-1], int)
    width = shape[-1]
    bias = node.inputs[3] if len(node.inputs) > 3 else None
    if bias is not None:
        cuts = [
            build.part(bias, start, end, 0) for start, end in ((0, width), (width, 2 * width), (2 * width, 1 << 31))
        ]
        parts = [build.op("Add", part, build.cast(cut, real)) for part, cut in zip(parts, cuts, strict=True)]
    return parts, width


def _causal(build: Builder, heads: Heads) -> ir.Value:
    """Key j is visible to query i of a sequence with p past keys where j <= p + i: (queries, keys)."""
    keys, queries = build.size(heads.key, 2), build.size(heads.query, 2)
    one = build.const(1)
    j = build.op("Range", build.const(0), keys, one)
    i = build.op("Range", build.op("Sub", keys, queries), keys, one)
    return build.op("Not", build.op("Greater", j, build.unsqueeze(i, [1])))


def _padding(view: View, build: Builder, site: Site, mask: ir.Value, heads: Heads) -> ir.Value:
    """The padding mask as (batch, 1, queries or 1, keys)."""
    shape = view.shape(mask)
    numbers = build.cast(mask, ir.DataType.INT64)
    if shape is None or len(shape) == 2:  # what lengths were counted from has two axes
        return build.unsqueeze(build.op("Greater", numbers, build.const(0)), [1, 2])
    if len(shape) == 3:
        return build.unsqueeze(build.op("Greater", numbers, build.const(0)), [1])
    j = build.op("Range", build.const(0), build.size(heads.key, 2), build.const(1))
    if not _starts_at(view, site, shape[0]):
        return build.unsqueeze(build.op("Less", j, build.unsqueeze(numbers, [1])), [1, 2])
    assert isinstance(shape[0], int)
    half = shape[0] // 2
    ends, starts = build.part(numbers, 0, half, 0), build.part(numbers, half, 2 * half, 0)
    before = build.op("Less", j, build.unsqueeze(ends, [1]))
    behind = build.op("Not", build.op("Less", j, build.unsqueeze(starts, [1])))
    return build.unsqueeze(build.op("And", before, behind), [1, 2])


def _replace(node: ir.Node, values: list[ir.Value]) -> str:
    """Let ``values`` take the place, and the names, of a node's outputs; the first one's name."""
    graph = node.graph
    assert graph is not None
    first = node.outputs[0].name or ""
    for old, new in zip(node.outputs, values, strict=False):
        take_place(old, new, list(old.uses()))
    graph.remove(node)
    return first
