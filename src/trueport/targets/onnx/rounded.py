"""The four-bit weights of an artefact's layers, rounded on the prompts that calibrate."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trueport.targets.onnx.blocks import Blocks
from trueport.targets.onnx.layers import Layer, layers_of
from trueport.targets.onnx.quantize import Place, Weight, bits_and_size
from trueport.targets.onnx.rounding import in_blocks_on
from trueport.targets.onnx.trial import moments

if TYPE_CHECKING:
    from trueport.proof.calibration import Original
    from trueport.targets.onnx.lower import Graph

HELD = 2**30
"""Bytes of moments at a time; the calibration runs once for as many layers as they suffice for."""


@dataclass(frozen=True)
class _Use:
    """A layer and the graph that it is in."""

    graph: str
    layer: Layer

    @property
    def place(self) -> Place:
        return self.graph, self.layer.path


def rounded(graphs: Sequence[Graph], original: Original, block_size: int | None) -> dict[Weight, Blocks]:
    """The blocks of every matrix: where several layers share it, on the activations of all of them.

    What no prompt reaches is left out, and what is not finite there.
    """
    found: dict[Weight, Blocks] = {}
    for part in _portions(_shared(graphs)):
        met = moments(graphs, original, {use.place for uses in part for use in uses}.__contains__)
        for uses in part:
            layer, own = uses[0].layer, [met[use.place] for use in uses if use.place in met]
            total = sum(own[1:], own[0]) if own else np.array(np.nan)
            if np.isfinite(total).all():
                _, size = bits_and_size("int4", layer.width, block_size)
                blocks = in_blocks_on(layer.matrix(), total, size)
                found |= dict.fromkeys(((use.graph, use.layer.key) for use in uses), blocks)
    return found


def _shared(graphs: Sequence[Graph]) -> list[list[_Use]]:
    """Every matrix with its layers; equal ones are stored once, and have to stay equal."""
    found: dict[tuple[bytes, tuple[int, ...]], list[_Use]] = {}
    for graph in graphs:
        for layer in layers_of(graph)[0]:
            matrix = layer.matrix()
            found.setdefault((hashlib.sha256(matrix.data).digest(), matrix.shape), []).append(_Use(graph.name, layer))
    return list(found.values())


def _portions(matrices: Iterable[list[_Use]]) -> Iterator[list[list[_Use]]]:
    """As many at a time as ``HELD`` has room for, at least one."""
    part: list[list[_Use]] = []
    held = 0
    for uses in matrices:
        size = 4 * sum(use.layer.width**2 for use in uses)
        if part and held + size > HELD:
            yield part
            part, held = [], 0
        part.append(uses)
        held += size
    if part:
        yield part
