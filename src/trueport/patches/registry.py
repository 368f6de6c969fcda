"""The patches that Trueport knows, in the order in which they are applied."""

from __future__ import annotations

from trueport.patches import torch_fixes, transformers_fixes
from trueport.patches.patch import Patch


def registered() -> tuple[Patch, ...]:
    """Every patch."""
    return (*torch_fixes.PATCHES, *transformers_fixes.PATCHES)
