"""Reversible replacements that make models exportable."""

from trueport.patches.context import exportable
from trueport.patches.registry import Patch, registered

__all__ = ["Patch", "exportable", "registered"]
