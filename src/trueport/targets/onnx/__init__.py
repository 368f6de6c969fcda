"""ONNX Runtime as a target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.targets import Lowered

if TYPE_CHECKING:
    from trueport.capture import Captured
    from trueport.interface import Interface
    from trueport.targets.onnx.session import OnnxSession

FOLDER = "onnx"
"""Where the graphs lie in the artefact."""


class OnnxTarget:
    """Graphs of one artefact, their weights stored once, run by ONNX Runtime."""

    name = "onnx"

    def lower(self, captured: Iterable[Captured], folder: Path, options: Mapping[str, Any]) -> dict[str, Lowered]:
        """Write ``onnx/*.onnx`` and the data file they share; ``options``: ``opset``."""
        from trueport.targets.onnx.lower import DEFAULT_OPSET, lower
        from trueport.targets.onnx.weights import save

        graphs = [lower(program, opset=options.get("opset") or DEFAULT_OPSET) for program in captured]
        (folder / FOLDER).mkdir()
        save(graphs, folder / FOLDER)
        return {
            graph.name: Lowered(f"{FOLDER}/{graph.stem}.onnx", graph.interface, len(graph.model.graph), graph.guards)
            for graph in graphs
        }

    def open(
        self, path: Path, interface: Interface | None, *, memory: str = "fast", threads: int | None = None
    ) -> OnnxSession:
        """An ONNX Runtime session on the CPU."""
        from trueport.targets.onnx.session import OnnxSession

        return OnnxSession(path, interface, memory=memory, threads=threads)
