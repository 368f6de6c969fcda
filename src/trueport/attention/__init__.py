"""Masked attention: what is right, in float64."""

from __future__ import annotations

from trueport.attention.masks import visible_keys
from trueport.attention.reference import POLICIES, reference

__all__ = ["POLICIES", "reference", "visible_keys"]
