"""Fusions applied to one graph."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes import common as passes

from trueport.graphs.fusions.reading import SMALL
from trueport.graphs.shapes import forget_shapes, infer_shapes

if TYPE_CHECKING:
    from trueport.graphs.fusions.table import Applied, Fusion
    from trueport.interface import Interface


def fuse(model: ir.Model, interface: Interface, fusions: Sequence[Fusion]) -> dict[str, Applied]:
    """Apply fusions in order, in place; by name what each did, the last one's interface being the graph's."""
    clean_up = Sequential(
        passes.RemoveUnusedNodesPass(),
        passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        passes.DeduplicateInitializersPass(SMALL),  # each match has brought its own; what reads them is then the same
        passes.CommonSubexpressionEliminationPass(),
        passes.NameFixPass(),
        passes.RemoveUnusedOpsetsPass(),
    )
    done: dict[str, Applied] = {}
    # Inference takes the sequences that go into a Loop for tensors, and the runtime then refuses the graph.
    inner = [(value, value.type, value.shape) for body in model.graph.subgraphs() for value in body.inputs]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for fusion in fusions:
            infer_shapes(model)
            done[fusion.name] = fusion.apply(model, interface)
            interface = done[fusion.name].interface
            clean_up(model)
            forget_shapes(model)
            for value, kind, shape in inner:
                value.type, value.shape = kind, shape
    for values, tensors in ((model.graph.inputs, interface.inputs), (model.graph.outputs, interface.outputs)):
        for value, tensor in zip(values, tensors, strict=True):
            value.shape = ir.Shape(tensor.shape)  # inference put its own symbols in their place
    return done
