"""The original exported again, beside everything, with where each operation comes from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.errors import TrueportError
from trueport.interface import Interface

if TYPE_CHECKING:
    from trueport.capture import Captured
    from trueport.roles import Component
    from trueport.targets.onnx.lower import Graph


@dataclass(frozen=True)
class Fresh:
    """The graphs of the original by component name, still with their origins, and where they lie."""

    captured: Mapping[str, Captured]
    graphs: Mapping[str, Graph]
    paths: Mapping[str, Path]


def fresh_graphs(original: Any, manifest: Mapping[str, Any], place: Path, *, opset: int | None) -> Fresh:
    """Capture and lower every component as the export did, into ``place``."""
    from trueport.capture import capture
    from trueport.targets.onnx.lower import DEFAULT_OPSET, lower
    from trueport.targets.onnx.weights import save

    captured = {part.name: capture(part) for part in components_of(original, manifest)}
    graphs = [lower(each, opset=opset or DEFAULT_OPSET, origins=True) for each in captured.values()]
    save(graphs, place)
    return Fresh(captured, {graph.name: graph for graph in graphs}, {g.name: place / f"{g.stem}.onnx" for g in graphs})


def components_of(original: Any, manifest: Mapping[str, Any]) -> list[Component]:
    """What is to be captured of the original: a transformers model's graphs, or a module as the manifest describes it."""
    source = manifest["source"]
    if source.get("role") != "custom":
        from trueport.roles import components

        untrained = tuple(source.get("untrained") or ())
        return components(original, untrained=untrained)
    import torch

    from trueport.modules import calls_of
    from trueport.proof.draws import drawn_of
    from trueport.proof.run import SEED
    from trueport.roles.component import Component
    from trueport.roles.custom import CustomModule

    entry = next(iter(manifest["components"].values()), None)
    if entry is None:
        raise TrueportError("The manifest names no component", "Export again.")
    interface = Interface.from_json(entry)
    call, _ = calls_of(source, interface)
    drawn, sizes = drawn_of(interface, source, SEED)
    feeds = {name: torch.from_numpy(array) for name, array in drawn.draw("traced", sizes).items()}
    return [Component("model", "model", CustomModule(original, call), interface, sizes, feeds=feeds)]
