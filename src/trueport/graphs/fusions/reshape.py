"""Reshapes that change nothing."""

from __future__ import annotations

import onnx_ir as ir

from trueport.graphs.fusions.reading import made_by, numbers, parts, same_size, scalar


def drop_reshapes(model: ir.Model) -> int:
    """Let the users of every Reshape to the shape that is there already read what went in; how many, in place.

    torch's translation of an attention puts one behind it. Needs inferred shapes.
    """
    found = [node for node in model.graph if made_by(node.outputs[0], "Reshape") and _changes_nothing(node)]
    for node in found:
        given = node.inputs[0]
        assert given is not None
        node.outputs[0].replace_all_uses_with(given)
        model.graph.remove(node, safe=True)
    return len(found)


def _changes_nothing(node: ir.Node) -> bool:
    """Whether all axes stay. One that is left to the operator (-1) is what it was if all others are."""
    (given, shape), made = node.inputs, node.outputs[0]
    if given is None or given.shape is None or made.shape is None or made.is_graph_output():
        return False
    if len(given.shape) != len(made.shape):
        return False
    moved = [axis for axis, size in enumerate(made.shape) if not same_size(size, given.shape[axis])]
    return not moved or (len(moved) == 1 and _asked(shape, len(made.shape))[moved[0]] == -1)


def _asked(shape: ir.Value | None, rank: int) -> list[int | None]:
    """The entries of a Reshape's shape, for each axis; None for one that is no constant."""
    if shape is None:
        return [None] * rank
    entries = numbers(shape) or [scalar(part) for part in parts(shape) or ()]
    return entries if len(entries) == rank else [None] * rank
