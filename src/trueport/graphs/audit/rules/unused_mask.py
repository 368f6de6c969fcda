"""Masks that are computed, or taken, and reach no attention."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.terms import Fills

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.view import View


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Mask inputs that nothing reads, or that reach no layer; mask terms without a reader."""
    inputs = {value.name: value for value in view.model.graph.inputs}
    softmaxes = any(node.op_type == "Softmax" for node in view.nodes)
    for name, reached in view.masks.items():
        value = inputs[name]
        if not value.uses() and not value.is_graph_output():
            yield rule.finding(view, None, f"nothing reads the input {name}: padding is attended", at=name)
        elif view.sites and not _arrives(view, reached):
            yield rule.finding(
                view, None, f"the input {name} is computed with and reaches none of the attention layers", at=name
            )
        elif softmaxes and not any(_arrives_somewhere(node, reached) for node in view.nodes) and not view.sites:
            yield rule.finding(view, None, f"the input {name} reaches no softmax", at=name)
    fills = Fills(view)
    for node in view.nodes:
        if node.op_type not in ("Where", "Mul", "Add", "And", "Sub") or _read(node):
            continue
        if id(node.outputs[0]) in view.masked or fills.of(node.outputs[0]) is not None:
            yield rule.finding(view, node, "a mask is computed here and nothing reads it")


def _arrives(view: View, reached: set[int]) -> bool:
    if any(id(value) in reached for site in view.sites for value in site.mask_values()):
        return True
    # Layers that the audit does not know as such count too: window attentions put together from pieces.
    return any(_arrives_somewhere(node, reached) for node in view.nodes)


def _arrives_somewhere(node: ir.Node, reached: set[int]) -> bool:
    return node.op_type == "Softmax" and id(node.inputs[0]) in reached


def _read(node: ir.Node) -> bool:
    return any(value.uses() or value.is_graph_output() for value in node.outputs)


UNUSED_MASK = Rule(
    "unused-mask",
    "A mask is never used",
    "Export the model with an attention implementation that reads its mask, and a sample that has padding.",
    check,
)
