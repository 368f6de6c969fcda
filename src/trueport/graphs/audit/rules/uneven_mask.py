"""Masks that reach some attention layers and not their likes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from trueport.graphs.audit.rule import Rule

if TYPE_CHECKING:
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Layers whose names differ in their number alone must see the same masks."""
    groups: dict[str, list[Site]] = {}
    for site in view.sites:
        groups.setdefault(kind(view, site), []).append(site)
    for name, reached in view.masks.items():
        for label, sites in groups.items():
            seen = [any(id(value) in reached for value in site.mask_values()) for site in sites]
            if all(seen) or not any(seen):
                continue
            for site, sees in zip(sites, seen, strict=True):
                if not sees and id(site.node) not in view.experiment.idle:
                    yield rule.finding(
                        view, site.node,
                        f"the input {name} reaches {sum(seen)} of {len(sites)} layers of this kind and not this one",
                        severity="error" if label else "warning",
                    )  # fmt: skip


def kind(view: View, site: Site) -> str:
    """The layer's path with its numbers taken out; empty where no name tells."""
    path = view.module(site.node)
    return re.sub(r"\d+", "N", f"{path} {site.node.op_type}") if path else ""


UNEVEN_MASK = Rule(
    "uneven-mask",
    "A mask reaches some layers and not others",
    "Export again with one attention implementation for all layers; a fusion may have dropped the mask.",
    check,
)
