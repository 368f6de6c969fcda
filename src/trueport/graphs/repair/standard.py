"""ONNX's own Attention: what its additive mask hides gets -inf, and nothing else changes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trueport.attention import reference, visible_keys
from trueport.graphs.repair.builder import Builder
from trueport.graphs.repair.probe import Probe, detached, weakest
from trueport.graphs.repair.terms import aligned, bound_factors, condition, hidden

if TYPE_CHECKING:
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

MASK, PAST = 3, 4
REFUSED = ("softcap", "softmax_precision", "qk_matmul_output_mode")


def is_standard(node: ir.Node) -> bool:
    """Whether a node is the Attention of ONNX itself."""
    return node.op_type == "Attention" and node.domain in ("", "ai.onnx")


def mend_attention(view: View, site: Site, rows: str, precision: str) -> Probe | str:
    """Put one Where in front of the operator's mask.

    ONNX Runtime gives zeros where every key is -inf, so that ``rows`` has to be ``zeros``.

    Args and what is returned: see ``operators.mend_operator``.
    """
    node, mask = site.node, site.slot("mask")
    reason = _obstacle(view, site, rows, precision)
    if reason or mask is None:
        return reason or "it has no mask"
    bound_factors(view, site)
    names = [value.name or "" if value is not None else "" for value in node.inputs]
    original = detached(node, names)
    constants = {i: array for i, value in enumerate(node.inputs) if (array := view.array(value)) is not None}
    build = Builder(view.model, node, f"repair/{node.name or node.outputs[0].name}")
    seen = build.conjunction([condition(build, term) for term in site.terms])
    node.replace_input_with(MASK, build.op("Where", seen, mask, build.const(-np.inf, np.float32)))
    terms = tuple((term.value.name or "", None) for term in site.terms)
    output = node.outputs[0].name or ""
    return Probe(
        node.name or output,
        view.module(node),
        original,
        tuple(names),
        output,
        terms,
        constants=constants,
        fill=weakest(site),
    )


def _obstacle(view: View, site: Site, rows: str, precision: str) -> str:
    """Why an Attention cannot be mended; empty where it can."""
    mask = site.slot("mask")
    if rows != "zeros":
        return "ONNX's Attention gives zeros to rows without keys: give --rows zeros"
    if precision == "float64":
        return "ONNX's Attention computes in the dtype of its inputs: leave --precision out"
    if not site.terms or mask is None:
        return "no mask terms were found"
    refused = [name for name in REFUSED if site.flag(name)]
    if refused or site.slot("lengths") is not None:
        return f"{refused[0] if refused else 'nonpad_kv_seqlen'} is not repaired"
    if view.dtype(mask) != ir.DataType.FLOAT:
        return f"its mask is {view.dtype(mask).name}"
    if any(term.value is not mask and not aligned(term.node.outputs[0], mask) for term in site.terms):
        return "between mask and operator the scores change their layout"
    return ""


def expected(probe: Probe, values: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float, bool]:
    """The operator's first output in float64, in its own layout, the largest score, and whether a query sees no key."""
    read = {i: probe.constants.get(i, values.get(name)) for i, name in enumerate(probe.inputs) if name}
    flat = read[0].ndim == 3  # type: ignore[union-attr]
    counts = [int(probe.attribute(name, 0)) for name in ("q_num_heads", "kv_num_heads", "kv_num_heads")]
    q, k, v = (_heads(read[i], count) for i, count in enumerate(counts))
    if read.get(PAST) is not None:
        k, v = (np.concatenate([_heads(read[PAST + i], 0), new], axis=2) for i, new in enumerate((k, v)))
    batch, queries, keys = len(q), q.shape[2], k.shape[2]
    before = keys - queries if read.get(PAST) is not None else 0
    seen = visible_keys(batch, queries, keys, causal=bool(probe.attribute("is_causal", 0)), past=before)
    seen = seen & ~hidden(probe.terms, values)
    bias = np.where(seen, np.asarray(read[MASK], dtype=np.float64), 0.0)
    scale = float(probe.attribute("scale", 0.0)) or None
    out = reference(q, k, v, mask=seen, bias=bias, scale=scale, rows="zeros")
    wide = np.repeat(k, q.shape[1] // k.shape[1], axis=1)
    scores = q @ wide.swapaxes(-1, -2) * (scale or 1 / np.sqrt(q.shape[-1]))
    out = out.swapaxes(1, 2).reshape(batch, queries, -1) if flat else out
    return out, float(np.abs(scores).max(initial=0.0)), not seen.any(axis=-1).all()


def _heads(given: Any, count: int) -> np.ndarray:
    """(batch, heads, length, size) in float64, from that or from (batch, length, hidden)."""
    array = np.asarray(given, dtype=np.float64)
    return array if array.ndim == 4 else array.reshape(*array.shape[:2], count, -1).swapaxes(1, 2)
