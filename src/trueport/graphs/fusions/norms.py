"""Root mean square normalisation, which torch.export leaves as six operators."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from trueport.graphs.fusions.reading import numbers, rank, scalar

STASH = ir.DataType.FLOAT.value
"""The dtype that the mean is taken in."""


class RMSNorm(pattern.RewriteRuleClassBase):
    """weight · x / sqrt(mean(x²) + eps), over the last axis (Zhang and Sennrich, 2019)."""

    def __init__(self) -> None:
        super().__init__(name="rms-norm", remove_nodes=False)

    def pattern(self, op: Any, x: Any, weight: Any, two: Any, axes: Any, eps: Any) -> Any:
        """As transformers write it: the mean, then the reciprocal of its root, the weight last."""
        mean = op.ReduceMean(op.Pow(x, two), axes, _allow_other_attributes=True, _outputs=["mean"])
        return op.Mul(weight, op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(mean, eps)))))

    def check(
        self, context: Any, x: ir.Value, weight: ir.Value, two: ir.Value, axes: ir.Value, eps: ir.Value,
        mean: ir.Value, **_: Any,
    ) -> bool:  # fmt: skip
        """A square, the last axis, kept; a weight of one axis, in float32."""
        node = mean.producer()
        kept = node is None or "keepdims" not in node.attributes or node.attributes["keepdims"].value == 1
        return (
            scalar(two) == 2.0
            and numbers(axes) == [-1]
            and kept
            and scalar(eps) is not None
            and rank(weight) == 1
            and weight.shape is not None
            and weight.shape[0] != 1  # one number for all: the operator would read on behind it
            and weight.dtype == ir.DataType.FLOAT
        )

    def rewrite(self, op: Any, x: ir.Value, weight: ir.Value, eps: ir.Value, **_: Any) -> Any:
        """The operator of opset 23."""
        return op.RMSNormalization(x, weight, epsilon=scalar(eps), axis=-1, stash_type=STASH)
