"""A padding mask that is read entry by entry where it could be read as it lies."""

from __future__ import annotations

import onnx_ir as ir

from trueport.graphs.fusions.lengths import Lengths
from trueport.graphs.fusions.reading import made_by, numbers, operand, scalar
from trueport.graphs.repair.builder import Builder


def read_masks_whole(model: ir.Model) -> int:
    """Put ``mask[:, None, None, :]`` where a graph looks up ``mask[row, key]`` for all rows and keys; how many, in place.

    transformers index their padding masks with ranges that they broadcast, of which torch's translation makes a table of
    indices, (batch, 1, 1, keys, 2), and a GatherND. An Expand to the lengths that are there already goes too. Needs
    inferred shapes.
    """
    lengths, count = Lengths(), 0
    for node in list(model.graph):
        if made_by(node.outputs[0], "GatherND") and _looks_up_all(node, lengths):
            data = node.inputs[0]
            assert data is not None
            build = Builder(model, node, f"mask/{node.name or node.outputs[0].name}")
            whole = build.unsqueeze(data, [1, 2])
            whole.type = node.outputs[0].type
            node.outputs[0].replace_all_uses_with(whole)
            count += 1
    for node in list(model.graph) if count else ():
        if made_by(node.outputs[0], "Expand") and _expands_nothing(node, lengths):
            node.outputs[0].replace_all_uses_with(node.inputs[0])  # type: ignore[arg-type]
    return count


def _looks_up_all(node: ir.Node, lengths: Lengths) -> bool:
    """Whether a GatherND takes every entry of a matrix, rows along the first of four axes, columns along the last."""
    whole, pairs = lengths.of(node.inputs[0]), made_by(operand(node, 1), "Concat")
    if whole is None or len(whole) != 2 or pairs is None or len(pairs.inputs) != 2 or node.outputs[0].is_graph_output():
        return False
    found = [lengths.of(_counted(index)) for index in pairs.inputs]
    return found == [[whole[0], (), (), ()], [(), (), (), whole[1]]]


def _counted(index: ir.Value | None) -> ir.Value | None:
    """What a column of indices is before it is broadcast: 0, 1, 2 … along one of its axes; None for anything else."""
    column = made_by(index, "Unsqueeze")
    if column is None or numbers(operand(column, 1)) not in ([-1], [4]):
        return None
    spread = made_by(column.inputs[0], "Expand")
    found = value = None if spread is None else spread.inputs[0]
    while (node := made_by(value, "Unsqueeze")) is not None:
        value = node.inputs[0]
    counter = made_by(value, "Range")
    return found if counter is not None and [scalar(counter.inputs[place]) for place in (0, 2)] == [0, 1] else None


def _expands_nothing(node: ir.Node, lengths: Lengths) -> bool:
    given, asked = lengths.of(node.inputs[0]), lengths.told_by(node.inputs[1])
    return given is not None and given == asked and not node.outputs[0].is_graph_output()
