"""Trueport carries transformer models to the runtimes where they are used, with a proof."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["diagnose", "export", "exportable", "load", "optimize", "state", "verify"]

_HOMES = {
    "diagnose": "trueport.diagnosis",
    "export": "trueport.pipeline",
    "verify": "trueport.pipeline",
    "load": "trueport.runtime",
    "optimize": "trueport.optimization",
    "exportable": "trueport.patches",
    "state": "trueport.patches.caches",
}

if TYPE_CHECKING:
    from trueport.diagnosis.diagnose import diagnose
    from trueport.optimization import optimize
    from trueport.patches import exportable
    from trueport.patches.caches import state
    from trueport.pipeline import export, verify
    from trueport.runtime import load


def __getattr__(name: str) -> Any:
    """Import on first use: ``import trueport`` itself costs nothing."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trueport' has no attribute {name!r}")
