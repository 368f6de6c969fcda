"""Sliding windows that the config names and the graph lacks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from trueport.graphs.audit.rule import Rule

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

OTHERS = {"local_attention": ("sliding_attention", 2), "attention_chunk_size": ("chunked_attention", 1)}
"""Further names of a window: the kind of its layers, and how many sides it is the sum of."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Every layer that should slide has the window's number in its mask, or as its operator's attribute."""
    kinds = view.config.get("layer_types")
    for window, kind, sides in _windows(view.config):
        for index, site in enumerate(view.sites):
            layer = _layer(view, site, index)
            if isinstance(kinds, list) and not (layer < len(kinds) and kinds[layer] == kind):
                continue
            if not _has(view, site, window // sides):
                yield rule.finding(
                    view,
                    site.node,
                    f"config.json gives layer {layer} a window of {window} tokens, and its mask has none",
                )


def _windows(config: dict[str, Any]) -> Iterator[tuple[int, str, int]]:
    """Windows in tokens, the kind of their layers, and their sides."""
    window = sliding_window(config)
    if window is not None:
        yield window, "sliding_attention", 1
    limit = config.get("max_position_embeddings")
    for name, (kind, sides) in OTHERS.items():
        other = config.get(name)
        if (
            not isinstance(other, int)
            or isinstance(other, bool)
            or other < 1
            or not isinstance(config.get("layer_types"), list)
        ):
            continue
        if not (isinstance(limit, int) and limit <= other):
            yield other, kind, sides


def sliding_window(config: dict[str, Any]) -> int | None:
    """The window in tokens, where the model reaches past it."""
    window = config.get("sliding_window")
    if not isinstance(window, int) or isinstance(window, bool) or window < 1:
        return None
    if config.get("use_sliding_window") is False or config.get("is_encoder_decoder"):
        return None
    limit = config.get("max_position_embeddings")
    return None if isinstance(limit, int) and limit <= window else window


def _layer(view: View, site: Site, index: int) -> int:
    """The layer's number in its path, else its place among the attentions."""
    found = re.search(r"(?:layers|layer|h|blocks)[._](\d{1,5})", view.module(site.node) or site.node.name or "")
    return int(found.group(1)) if found else index


def _has(view: View, site: Site, window: int) -> bool:
    attribute = site.node.attributes.get("local_window_size")
    if attribute is not None and int(attribute.value) > 0:
        return True
    values = site.mask_values() if site.fused else [term.value for term in site.terms]
    wanted = {window, window - 1, window + 1, -window, 1 - window}
    for node in view.backwards(values):
        for value in node.inputs:
            if view.scalar(value) in wanted:
                return True
            array = view.array(value)
            if array is not None and array.ndim >= 2:
                return True  # a stored mask may hold the window in its pattern
    return False


MISSING_WINDOW = Rule(
    "missing-window",
    "A sliding window is missing",
    "Export with a tool that keeps the model's window: past it, the graph attends what the model does not see.",
    check,
)
