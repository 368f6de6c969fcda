"""Running an artefact: sessions, and transformers' own ``generate`` over them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trueport.runtime.cache import RuntimeCache
    from trueport.runtime.model import TrueportModel

__all__ = ["RuntimeCache", "TrueportModel", "load"]

_HOMES = {"RuntimeCache": "trueport.runtime.cache", "TrueportModel": "trueport.runtime.model"}


def load(
    folder: str | Path, *, runtime: str | None = None, memory: str = "fast", threads: int | None = None
) -> TrueportModel:
    """Open an artefact's folder as a model with ``__call__``, ``generate()`` and ``step()``.

    Args:
        folder: what ``export`` wrote.
        runtime: ``"onnx"`` or ``"executorch"``; None takes the first target that the manifest names.
        memory: ``"fast"`` folds and prepacks weights; ``"pages"`` also moves them into large pages, where the system
            has some: a longer opening, faster steps; ``"map"`` leaves the weights of graphs mapped from disk, but for
            those in 4 or 8 bits. An ExecuTorch program knows no difference.
        threads: threads of one operator; None leaves it to the runtime. ExecuTorch has one number for all models of a
            process.

    Raises:
        ArtifactError: the folder is not an artefact, a file is missing, or no runtime can run it.
    """
    from trueport.quiet import quiet

    with quiet():
        from trueport.runtime.loading import load as open_folder

        return open_folder(Path(folder), runtime=runtime, memory=memory, threads=threads)


def __getattr__(name: str) -> Any:
    """Import on first use: transformers' generation code takes seconds."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trueport.runtime' has no attribute {name!r}")
