"""Reversible replacements that make models exportable."""

from trueport.patches.context import exportable
from trueport.patches.patch import Patch
from trueport.patches.registry import needed, registered

__all__ = ["Patch", "exportable", "needed", "registered"]
