"""The patches that Trueport knows, in the order in which they are applied."""

from __future__ import annotations

from collections.abc import Collection

from trueport.patches import torch_fixes, transformers_fixes
from trueport.patches.patch import Patch
from trueport.patches.transformers_kernels import kernels_of


def registered() -> tuple[Patch, ...]:
    """Every patch."""
    return (*torch_fixes.PATCHES, *transformers_fixes.PATCHES)


def needed(modules: Collection[str]) -> list[Patch]:
    """Those that apply to a model whose submodules come from these Python modules, the kernels in them included."""
    found = set(modules)
    return [patch for patch in registered() if patch.applies_to(found)] + kernels_of(found)
