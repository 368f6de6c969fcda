"""Masks that are wrong, made right in the graph itself, with a proof."""

from __future__ import annotations

from trueport.graphs.repair.run import Repair, repair

__all__ = ["Repair", "repair"]
