"""Replacements inside transformers, a file for each family."""

from __future__ import annotations

from trueport.patches import transformers_canine, transformers_funnel, transformers_longformer
from trueport.patches.patch import Patch

PATCHES: tuple[Patch, ...] = (
    *transformers_longformer.PATCHES,
    *transformers_funnel.PATCHES,
    *transformers_canine.PATCHES,
)
