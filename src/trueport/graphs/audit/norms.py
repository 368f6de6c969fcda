"""How large scores get, from the weights that make queries and keys."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.view import SAME

if TYPE_CHECKING:
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

CARRIES = SAME | {"Mul", "Div", "Add", "Slice", "Gather", "Split", "Concat", "DequantizeLinear", "Sub", "Neg"}
"""Operators between a projection and the scores, and between a stored weight and its projection."""


def score_spread(view: View, site: Site) -> float | None:
    """Standard deviation of a layer's scores for normalised inputs; None where the projections are not found.

    With inputs of unit variance, weights of root mean square ``w`` over ``n`` inputs, and scores divided by the root of
    the head size, a query's entry has the deviation ``w_q * sqrt(n)`` and a score ``n * w_q * w_k``: the sum of ``size``
    products of independent entries, over ``sqrt(size)``.
    """
    if site.scores is not None:
        sides = [_projection(view, value) for value in site.scores.inputs[:2]]
    elif site.node.op_type == "Attention" and site.node.domain == "com.microsoft":
        sides = [_weight_spread(view, site.node.inputs[1])] * 2
    elif site.node.op_type == "QAttention":
        sides = [_quantized_spread(view, site.node)] * 2
    else:
        sides = [_projection(view, value) for value in site.node.inputs[:2]]
    if sides[0] is None or sides[1] is None:
        return None
    return sides[0] * sides[1]


def chance(fill: float, spread: float) -> float:
    """How likely a hidden key's score outweighs the fill against a visible one's: their difference is normal.

    A key counts once its score comes within 20 of the best visible one (a weight of 2e-9).
    """
    return 0.5 * math.erfc((-fill - 20) / (2 * spread)) if spread > 0 else 0.0


def _projection(view: View, value: ir.Value | None) -> float | None:
    """The spread of queries or keys: up to the first product with a stored matrix, or the attention's own operator."""
    for _ in range(40):
        node = value.producer() if value is not None else None
        if node is None:
            return None
        if node.op_type in ("MatMul", "Gemm", "FusedMatMul"):
            return next((s for s in (_weight_spread(view, v) for v in node.inputs[1::-1]) if s is not None), None)
        if node.op_type not in CARRIES:
            return None
        computed = [v for v in node.inputs if v is not None and view.array(v) is None and v.producer() is not None]
        value = computed[-1] if node.op_type == "Concat" and computed else computed[0] if computed else None
    return None


def _weight_spread(view: View, value: ir.Value | None) -> float | None:
    """``w * sqrt(n)`` of a stored matrix (n, m), or of its transpose."""
    transposed = False
    factor = 1.0
    while value is not None and view.array(value) is None:
        node = value.producer()
        if node is None or node.op_type not in CARRIES:
            return None
        transposed ^= node.op_type == "Transpose"
        if node.op_type == "DequantizeLinear":
            scales = view.array(node.inputs[1])
            if scales is None:
                return None
            factor *= float(np.sqrt(np.mean(np.square(scales.astype(np.float64)))))
        value = node.inputs[0]
    array = view.array(value)
    if array is None or array.ndim != 2 or not array.size:
        return None
    square = float(np.mean(np.square(array.astype(np.float64))))
    return factor * math.sqrt(square * array.shape[1 if transposed else 0])


def _quantized_spread(view: View, node: ir.Node) -> float | None:
    """Of QAttention: integers less their zero point, times their scale."""
    weight, scale = view.array(node.inputs[1]), view.array(node.inputs[4])
    zero = view.array(node.inputs[7]) if len(node.inputs) > 7 else None
    if weight is None or scale is None:
        return None
    real = (weight.astype(np.float64) - (0 if zero is None else zero.astype(np.float64))) * scale.astype(np.float64)
    return math.sqrt(float(np.mean(np.square(real))) * weight.shape[0])
