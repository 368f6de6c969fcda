"""Which comes first where rows and heads share an axis: told by how the queries were put there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.experiment.arithmetic import compute
from trueport.graphs.audit.experiment.inputs import padding_masks
from trueport.graphs.audit.experiment.known import MISFITS, UnknownError, bounded

if TYPE_CHECKING:
    from trueport.graphs.audit.experiment.evaluator import Evaluator

MOVES = {"Reshape", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Split", "Slice", "Gather", "Concat", "Expand"}
"""Operators that move elements."""
KEEPS = {"Mul", "Div", "Add", "Sub", "Neg", "Cast", "Identity"}
"""Operators that leave every element at its place."""
DEPTH = 24
"""Nodes between queries and a value whose axes have names."""


def heads_first(walk: Evaluator, queries: ir.Value | None, rows: int) -> bool | None:
    """Whether an axis holds all rows of the first head before those of the second; None where nothing tells.

    Args:
        walk: of the graph, for shapes.
        queries: (rows x heads, length, size).
        rows: how many there are.
    """
    if queries is None:
        return None
    names = {str(mask.shape[0]) for mask in padding_masks(walk.view) if mask.shape}
    try:
        places = _rows(walk, queries, names, DEPTH)
    except (UnknownError, *MISFITS):
        return None
    if not places.ndim or not places.size or len(places) % rows:
        return None
    own = places.reshape(len(places), -1)
    if (own != own[:, :1]).any():
        return None
    heads = len(places) // rows
    if (own[:, 0] == np.repeat(np.arange(rows), heads)).all():
        return False
    return True if (own[:, 0] == np.tile(np.arange(rows), heads)).all() else None


def _rows(walk: Evaluator, value: ir.Value, names: set[str], depth: int) -> Any:
    """The number of its row, for every element of a value.

    Raises:
        UnknownError: it cannot be told.
    """
    walk.budget.spend()
    node = value.producer()
    if not depth:
        raise UnknownError
    if node is not None and node.op_type in MOVES:
        moved = len(node.inputs) if node.op_type == "Concat" else 1
        parts = [_rows(walk, part, names, depth - 1) for part in node.inputs[:moved] if part is not None]
        further = [None if part is None else walk.of(part).array for part in node.inputs[moved:]]
        found = compute(node, [*parts, *further])[list(node.outputs).index(value)]
        walk.budget.spend(found.size)
        return found
    if node is not None and node.op_type in KEEPS:
        several = [part for part in node.inputs if part is not None and walk.view.scalar(part) is None]
        if len(several) == 1:
            return _rows(walk, several[0], names, depth - 1)
    shape = walk.shape(value)
    if shape is None:
        raise UnknownError
    bounded(*shape)
    axes = [axis for axis, name in enumerate(walk.view.shape(value) or ()) if name in names]
    if len(axes) != 1:
        raise UnknownError
    counted = np.arange(shape[axes[0]]).reshape([-1 if axis == axes[0] else 1 for axis in range(len(shape))])
    return np.broadcast_to(counted, shape)
