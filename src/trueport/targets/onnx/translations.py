"""ONNX forms of operators that torch.onnx does not know."""

# No `from __future__ import annotations`: onnxscript reads the annotations as types.
from collections.abc import Callable
from typing import Any, TypeVar, Union

import onnx_ir as ir
import onnxscript
from onnxscript import BFLOAT16, BOOL, FLOAT, FLOAT16, INT32, INT64
from onnxscript import opset18 as op

from trueport.targets.onnx import arithmetic, logs, norms, places, recurrences

Real = TypeVar("Real", bound=Union[FLOAT, FLOAT16, BFLOAT16])  # noqa: UP007  (onnxscript reads no |)
Integer = TypeVar("Integer", bound=Union[INT32, INT64])  # noqa: UP007


@onnxscript.script(onnxscript.values.Opset("trueport.functions", 1), default_opset=op)
def grouped_matmul(rows: Real, weight: Real, ends: Integer) -> Real:  # type: ignore[no-untyped-def]
    """Rows sorted by expert times their expert's matrix, as one loop over experts.

    (rows, in), (experts, in, out), cumulative row counts (experts,) -> (rows, out). Each row meets only its own
    expert, and the graph's size does not grow with the number of experts.
    """
    zero = op.Constant(value_ints=[0])
    last = op.Constant(value_ints=[-1])
    first = op.Constant(value_int=0)
    one = op.Constant(value_int=1)
    stops = op.Cast(ends, to=7)
    starts = op.Concat(zero, op.Slice(stops, zero, last, zero), axis=0)
    parts = op.SplitToSequence(rows, stops - starts, axis=0)
    others = op.Squeeze(op.Shape(ends)) - one
    # Expert 0 stands outside the loop so that the sequence has its element type from the start.
    products = op.SequenceConstruct(op.MatMul(op.SequenceAt(parts, first), op.Gather(weight, first, axis=0)))
    for index in range(others):
        expert = index + one
        part = op.SequenceAt(parts, expert)
        matrix = op.Gather(weight, expert, axis=0)
        products = op.SequenceInsert(products, op.MatMul(part, matrix))
    return op.ConcatFromSequence(products, axis=0)


def grouped(rows: Any, weight: Any, offs: Any = None, bias: Any = None, out_dtype: int | None = None) -> Any:
    """torch's own ``_grouped_mm``, which transformers calls for experts in bfloat16: what ``grouped_matmul`` computes."""
    if offs is None or bias is not None or out_dtype is not None or len(rows.shape) != 2 or len(weight.shape) != 3:
        raise ValueError(
            "_grouped_mm takes rows (rows, in) sorted by expert and a weight (experts, in, out), and no more"
        )
    return grouped_matmul(rows, weight, offs)


def copied(written: Any, source: Any, non_blocking: bool = False) -> Any:
    """What ``written.copy_(source)`` leaves: the source in the dtype and the shape of what it is written to."""
    return op.Expand(op.CastLike(source, written), op.Shape(written))


def chosen(condition: BOOL, one: Any, other: Any) -> Any:
    """``where``; of truth values in *and* and *or*, as ONNX Runtime chooses between numbers alone."""
    if not all(isinstance(value, bool) or getattr(value, "dtype", None) == ir.DataType.BOOL for value in (one, other)):
        return op.Where(condition, one, other)
    return op.Or(op.And(condition, one), op.And(op.Not(condition), other))


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Translations by torch operator, for those operators that exist in this process."""
    import torch
    import transformers.integrations.moe  # noqa: F401  (registers its operators)

    table: dict[Callable[..., Any], Callable[..., Any]] = {
        torch.ops.aten.copy.default: copied,
        torch.ops.aten._grouped_mm.default: grouped,
        **{getattr(torch.ops.aten.where, name): chosen for name in ("self", "ScalarSelf", "ScalarOther", "Scalar")},
        **arithmetic.forms(),
        **logs.forms(),
        **norms.forms(),
        **places.forms(),
        **recurrences.forms(),
    }
    if hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        table[torch.ops.transformers.grouped_mm_fallback.default] = grouped_matmul
    return table
