"""The four-bit weights of an artefact's layers, rounded on the prompts that calibrate."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from trueport.targets.onnx.blocks import Blocks, levels_in_blocks, spans
from trueport.targets.onnx.layers import Layer, layers_of
from trueport.targets.onnx.quantize import Place, Weight, bits_and_size
from trueport.targets.onnx.trial import moments
from trueport.targets.rounding import Grid, levels_on, portions

if TYPE_CHECKING:
    from trueport.proof.calibration import Original
    from trueport.targets.onnx.lower import Graph


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
    for part in portions(_shared(graphs), lambda uses: (use.layer.width for use in uses)):
        met = moments(graphs, original, {use.place for uses in part for use in uses}.__contains__)
        for uses in part:
            layer, own = uses[0].layer, [met[use.place] for use in uses if use.place in met]
            total = sum(own[1:], own[0]) if own else np.array(np.nan)
            if np.isfinite(total).all():
                _, size = bits_and_size("int4", layer.width, block_size)
                blocks = in_blocks_on(layer.matrix(), total, size)
                found |= dict.fromkeys(((use.graph, use.layer.key) for use in uses), blocks)
    return found


def in_blocks_on(matrix: np.ndarray, moments: np.ndarray, size: int) -> Blocks:
    """Round a float32 matrix (outputs, width) to four bits as ``in_blocks`` does, near in what it makes of activations.

    Args:
        matrix: the weights.
        moments: X^T X of the activations that the layer meets, (width, width) float32 or float64.
        size: weights of a block.
    """
    scales, zeros = spans(matrix, size)
    levels = levels_on(matrix, moments, Grid(size, scales, zeros, 0, 15))
    return levels_in_blocks(levels.astype(np.uint8), scales, zeros, size)


def _shared(graphs: Sequence[Graph]) -> list[list[_Use]]:
    """Every matrix with its layers; equal ones are stored once, and have to stay equal."""
    found: dict[tuple[bytes, tuple[int, ...]], list[_Use]] = {}
    for graph in graphs:
        for layer in layers_of(graph)[0]:
            matrix = layer.matrix()
            found.setdefault((hashlib.sha256(matrix.data).digest(), matrix.shape), []).append(_Use(graph.name, layer))
    return list(found.values())
