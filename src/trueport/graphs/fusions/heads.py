"""Queries, keys and values of one product, given their heads together."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from trueport.graphs.fusions.reading import attribute, made_by, same_size
from trueport.graphs.repair.builder import Builder

HEADS_FIRST = (0, 2, 1, 3)
"""(batch, sequence, heads, size) to (batch, heads, sequence, size)."""


def cut_by_heads(model: ir.Model) -> int:
    """Let every product that is cut, and of which each part is then given its heads, be given them as a whole; how many.

    (batch, sequence, width) becomes (batch, heads, sequence, size) by one Reshape and one Transpose, and is cut along the
    heads: in place of a Reshape and a Transpose for each part. In place; needs inferred shapes.
    """
    found = [(node, ends, size) for node in model.graph if (ends := _ends(node)) and (size := _size(node, ends))]
    for node, ends, size in found:
        whole = node.inputs[0]
        assert whole is not None
        counts = [int(part.shape[2]) // size for part in node.outputs]  # type: ignore[index, arg-type]
        build = Builder(model, node, f"heads/{node.name or node.outputs[0].name}")
        shape = build.const([0, 0, sum(counts), size])  # 0: as it is
        heads = build.op("Transpose", build.op("Reshape", whole, shape), perm=list(HEADS_FIRST))
        cut = ir.node("Split", [heads, build.const(counts)], {"axis": 1}, num_outputs=len(counts))
        cut.name = f"{build.stem}/Split"
        cut.metadata_props.update(node.metadata_props)
        model.graph.insert_before(node, cut)
        for end, part in zip(ends, cut.outputs, strict=True):
            old = end.outputs[0]
            part.type, part.shape, part.name = old.type, old.shape, old.name
            old.name = f"{old.name}_apart"
            old.replace_all_uses_with(part)
    return len(found)


def _ends(node: ir.Node) -> list[ir.Node]:
    """The Transposes that give a Split's parts their heads, one for each; none where a part goes another way."""
    if node.op_type != "Split" or node.domain not in ("", "ai.onnx") or attribute(node, "axis", 0) not in (-1, 2):
        return []
    ends = []
    for part in node.outputs:
        shaped = _only_user(part, "Reshape")
        end = None if shaped is None else _only_user(shaped.outputs[0], "Transpose")
        if end is None or tuple(attribute(end, "perm", ())) != HEADS_FIRST or end.outputs[0].is_graph_output():
            return []
        ends.append(end)
    return ends


def _only_user(value: ir.Value, kind: str) -> ir.Node | None:
    """The node of a kind that alone reads a value, as its first input."""
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].idx != 0:
        return None
    return made_by(uses[0].node.outputs[0], kind)


def _size(node: ir.Node, ends: Sequence[ir.Node]) -> int:
    """What all parts' heads have in common: their size, where batch and sequence stay; 0 for nothing."""
    whole = node.inputs[0]
    if whole is None or whole.shape is None or len(whole.shape) != 3:
        return 0
    shapes = [end.inputs[0].shape for end in ends]  # type: ignore[union-attr]
    if any(shape is None or len(shape) != 4 for shape in shapes):
        return 0
    if not all(same_size(shape[axis], whole.shape[axis]) for shape in shapes if shape for axis in (0, 1)):
        return 0
    size = shapes[0][3]  # type: ignore[index]
    if not isinstance(size, int) or not size or any(shape[3] != size for shape in shapes if shape):
        return 0
    widths = [part.shape[2] if part.shape else None for part in node.outputs]
    return size if all(isinstance(width, int) and width % size == 0 for width in widths) else 0
