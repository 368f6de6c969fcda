"""ONNX Runtime as a target."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.collector import rare_collections
from trueport.targets import Again, Arrays, Lowered

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trueport.capture import Captured
    from trueport.interface import Interface
    from trueport.proof.calibration import Original
    from trueport.roles import Component
    from trueport.roles.bounded import Bounds
    from trueport.targets.onnx.lower import Graph
    from trueport.targets.onnx.session import OnnxSession
    from trueport.targets.quantized import Gate

FOLDER = "onnx"
"""Where the graphs lie in the artefact."""


class OnnxTarget:
    """Graphs of one artefact, their weights stored once, run by ONNX Runtime."""

    name = "onnx"
    links = True
    stamps = True
    packages = ("onnx", "onnxscript", "onnx-ir", "onnxruntime")

    def __init__(self) -> None:
        self._original: Original | None = None

    def components(
        self, model: PreTrainedModel, *, untrained: tuple[str, ...], options: Mapping[str, Any]
    ) -> list[Component]:
        """Graphs of any batch and length, whose cache goes in and out."""
        from trueport.proof.calibration import Original, calibrating
        from trueport.roles import components, role_of

        self._original = Original(model.config, role_of(model), calibrating(tuple(options.get("prompts") or ())))
        return components(model, untrained=untrained)

    @property
    def gates(self) -> Mapping[str, Gate]:
        """What each kind of quantisation has to keep."""
        from trueport.targets.onnx.quantize import GATES

        return GATES

    def quantised_layers(self, path: Path) -> Counter[str]:
        """Of one file, by kind; see ``Target``."""
        from trueport.targets.onnx.quantize import quantised_layers

        return quantised_layers(path)

    def bounds(self, options: Mapping[str, Any]) -> Bounds | None:
        """None: graphs take any size."""
        return None

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse a quantisation that graphs do not have, before the model is loaded."""
        if options.get("quantize") is not None:
            from trueport.targets.onnx.quantize import check_options

            check_options(options["quantize"], options.get("block_size"))

    def restored(self, content: bytes, component: Component) -> Graph | None:
        """The graph, with the component's weights."""
        from trueport.targets.onnx.kept import from_bytes

        return from_bytes(content, component)

    @rare_collections()
    def lower(
        self, captured: Iterable[Captured | Graph], folder: Path, options: Mapping[str, Any]
    ) -> dict[str, Lowered]:
        """Write ``onnx/*.onnx`` and the data files they share; ``options``: ``opset``, ``weights``, ``meter``."""
        from trueport.targets.onnx.kept import lowered
        from trueport.targets.onnx.lower import DEFAULT_OPSET
        from trueport.targets.onnx.plan import quantised
        from trueport.targets.onnx.weights import WORTH_TAKING, save

        graphs = [lowered(part, options.get("opset") or DEFAULT_OPSET) for part in captured]
        kind, told = options.get("quantize"), {}
        if kind is not None:
            assert self._original is not None
            told["quantize"] = quantised(graphs, kind, self._original, options.get("block_size")).to_json()
        (folder / FOLDER).mkdir()
        # Beside quantised weights a checkpoint's file is worth its bytes only where all of them are used.
        worth = WORTH_TAKING if kind is None else 1.0
        saved = save(graphs, folder / FOLDER, options.get("weights") or "auto", options.get("meter"), worth=worth)
        extra = told | ({"weights": saved.to_json(FOLDER)} if saved.linked else {})
        return {
            graph.name: Lowered(
                f"{FOLDER}/{graph.stem}.onnx", graph.interface, len(graph.model.graph), graph.guards, extra
            )
            for graph in graphs
        }

    def explain(self, failed: Sequence[str], again: Again, options: Mapping[str, Any]) -> dict[str, str]:
        """Whether they hold in the blocks that nobody has to ask for; there is no other way to export to ONNX."""
        size = options.get("block_size")
        if size is None:
            return {}
        left = again({"block_size": None})
        return {clause: f"It holds without --block-size {size}" for clause in failed if clause not in left}

    def run_apart(self, path: Path, runs: Sequence[Arrays]) -> Sequence[Arrays | None]:
        """Runs in a process of their own."""
        from trueport.targets.onnx.apart import run_apart

        return run_apart(path, runs)

    def open(
        self,
        path: Path,
        interface: Interface | None,
        *,
        entry: Mapping[str, Any],
        memory: str = "fast",
        threads: int | None = None,
    ) -> OnnxSession:
        """An ONNX Runtime session on the CPU.

        Raises:
            GraphError: the graph is refused before the runtime sees it: folders come from strangers too.
        """
        from trueport.graphs.loading import check
        from trueport.targets.onnx.session import OnnxSession

        check(path)
        return OnnxSession(path, interface, memory=memory, threads=threads)
