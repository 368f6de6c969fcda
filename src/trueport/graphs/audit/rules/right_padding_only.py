"""Mask formats of ONNX Runtime's operators that can only say how long a row is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.view import EMBED_MASK, EMBEDS, uncast

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

COMPARES = {"Less", "Greater", "LessOrEqual", "GreaterOrEqual"}
COUNTS = {"ReduceSum", "ReduceMax"}
"""What makes lengths out of a mask."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Lengths in the place of masks; rotary embedding inside GroupQueryAttention with positions per row."""
    masks = [value for value in view.model.graph.inputs if value.name in view.masks]
    uncounted = view.dependents(masks, beyond=frozenset(COUNTS)) if masks else set()
    for site in view.sites:
        node = site.node
        lengths = site.slot("lengths") if node.domain != "com.microsoft" else None
        if lengths is not None and _summed(view, lengths):
            words = f"{node.op_type} gets the mask's sums as lengths, which say nothing of left padding and holes"
            mend = "Give the operator the mask itself, as attn_mask, and no lengths; `trueport repair` does not."
            yield replace(rule.finding(view, node, words), mend=mend, repairable=False)
        elif not site.fused or node.domain == "":
            yield from _compared(rule, view, site, uncounted)
        if not site.fused or node.domain != "com.microsoft":
            continue
        if node.op_type == "GroupQueryAttention":
            yield from _grouped(rule, view, node)
            continue
        mask = site.slot("mask")
        if mask is not None and is_lengths(view, mask):
            yield rule.finding(
                view, node, f"{node.op_type} gets lengths ({mask.name}), which say nothing of left padding and holes"
            )


def _compared(rule: Rule, view: View, site: Site, uncounted: set[int]) -> Iterator[Finding]:
    """A mask of which only the sums along the keys reach the layer, and are compared with counted keys.

    ``uncounted``: ids of what depends on masks in other ways too.
    """
    reaching = [value for value in site.mask_values() if id(value) in view.masked]
    if not reaching or any(id(value) in uncounted for value in reaching):
        return
    for compare in view.backwards(reaching):
        if compare.op_type not in COMPARES or not any(id(value) in view.masked for value in compare.inputs):
            continue
        if any(value is not None and counted(view, value) is not None for value in compare.inputs):
            words = "keys are compared with the mask's sums, which say nothing of left padding and holes"
            mend = "Hide the keys where the mask itself is 0; `trueport repair` does not, as such a layer has no mask."
            yield replace(rule.finding(view, site.node, words), mend=mend, repairable=False)
            return


def is_lengths(view: View, mask: ir.Value) -> bool:
    """Whether a mask input has one axis."""
    shape = view.shape(mask)
    if shape is not None:
        return len(shape) == 1
    return counted(view, mask) is not None


def counted(view: View, mask: ir.Value) -> ir.Value | None:
    """The mask (batch, keys) whose sums along the keys ``mask`` is; None where it is made otherwise."""
    value: ir.Value | None = mask
    for _ in range(8):
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type in EMBEDS:
            return node.inputs[EMBED_MASK] if len(node.inputs) > EMBED_MASK and value is node.outputs[1] else None
        if node.op_type in COUNTS and node.inputs[0] is not None:
            return uncast(node.inputs[0])
        if node.op_type not in ("Cast", "Identity", "Reshape", "Squeeze", "Unsqueeze"):
            return None
        value = node.inputs[0]
    return None


def _summed(view: View, lengths: ir.Value | None) -> bool:
    """Whether lengths are made of a mask's sums; the largest place of a token is none."""
    made = [node for node in view.backwards([lengths]) if any(id(value) in view.masked for value in node.inputs)]
    kinds = {node.op_type for node in made}
    return "ReduceSum" in kinds or {"ReduceMax", "CumSum"} <= kinds


def _grouped(rule: Rule, view: View, node: ir.Node) -> Iterator[Finding]:
    inputs = [*node.inputs, *[None] * 12]
    by_mask = _summed(view, inputs[5])
    if by_mask:
        besides = (
            " and no attention_bias" if inputs[10] is None else ", which hide a row's last keys whatever its bias says"
        )
        yield rule.finding(
            view, node, f"GroupQueryAttention gets the mask's sums as lengths{besides}: padding must be right"
        )
    rotates = node.attributes.get("do_rotary")
    if rotates is not None and rotates.value and inputs[9] is not None and by_mask:
        yield rule.finding(
            view, node, "GroupQueryAttention rotates by the first row's first position only: left padding is wrong"
        )


RIGHT_PADDING_ONLY = Rule(
    "right-padding-only",
    "A mask format assumes right padding",
    "Give the operator the raw mask (batch, keys), or an attention_bias; `trueport repair` does for the Attention family.",
    check,
    repairable=True,
)
