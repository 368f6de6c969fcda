"""Graphs that take rows of tokens and nothing that says which of them are padding."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

import onnx_ir as ir

from trueport.graphs.audit.rule import Rule

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

TOKENS = re.compile(r"(^|[./])(input_ids|tokens)([._:]\d+)?$")
"""How exporters name the tokens of a model that is given whole rows."""
SOURCE = re.compile(r"encoder_(hidden_states|outputs)")
"""What a decoder of an encoder-decoder takes: its rows begin together, and need no padding."""
PLACES = re.compile(r"position")
"""Inputs that say where a token stands: they may make the causal mask, and cannot say what is padding."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Several rows can be given, and no input's content reaches the mask of any layer."""
    ids = next((value for value in view.model.graph.inputs if TOKENS.search(value.name or "")), None)
    if ids is None or not view.sites or view.masks or _one_row(ids):
        return
    if any(SOURCE.search(value.name or "") for value in view.model.graph.inputs):
        return
    for value in view.model.graph.inputs:
        stored = value.name in view.model.graph.initializers
        if not stored and not PLACES.search(value.name or "") and _tells(view, value):
            return
    yield rule.finding(
        view, view.sites[0].node,
        f"the graph takes several rows of {ids.name} and no mask: rows of different lengths read each other's padding",
        severity="warning",
    )  # fmt: skip


def _one_row(ids: ir.Value) -> bool:
    return ids.shape is not None and (len(ids.shape) < 2 or ids.shape[0] == 1)


def _tells(view: View, value: ir.Value) -> bool:
    """Whether an input's content reaches the mask of a layer; a float one may reach its scores as a cache does."""
    reached = view.dependents([value])
    numbers = value.dtype is not None and value.dtype.is_floating_point()
    return any(id(mask) in reached for site in view.sites for mask in _masks(site, scores=not numbers))


def _masks(site: Site, *, scores: bool) -> list[ir.Value]:
    return [term.value for term in site.terms] + (site.mask_values() if site.fused or scores else [])


NO_MASK = Rule(
    "no-mask",
    "Nothing says which tokens are padding",
    "Give it rows of one length, or one row at a time; or export it with a sample that has padding.",
    check,
)
