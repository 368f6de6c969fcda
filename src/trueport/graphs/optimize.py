"""Constant folding and clean-up after conversion."""

from __future__ import annotations

import warnings
from collections.abc import Collection

import onnx_ir as ir


def optimize(model: ir.Model, weights: Collection[str]) -> None:
    """Fold what is constant, drop what is unused; in place.

    Args:
        model: a freshly converted graph.
        weights: names of the initializers that are the model's weights. Nothing computed from one is folded: a folded
            transpose would be a second copy, and the runtime folds at load anyway.
    """
    from onnxscript.optimizer import optimize_ir

    names = set(weights)

    def should_fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in names for value in node.inputs) else None

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        optimize_ir(model, should_fold=should_fold)
