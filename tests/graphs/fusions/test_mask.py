"""Padding masks that are looked up entry by entry, read whole."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper
from onnx_ir.passes import common as passes

from trueport.graphs.fusions.lengths import Lengths
from trueport.graphs.fusions.mask import read_masks_whole
from trueport.graphs.shapes import infer_shapes

BOOL, INT = TensorProto.BOOL, TensorProto.INT64


def looked_up(
    rows: str = "b", columns: str = "both", start: int = 0, step: int = 1, swapped: bool = False, asked: str = "both"
) -> onnx.ModelProto:
    """allowed (b, 1, s, p + s) of ids (b, s), a past (b, 2, p, 8) and a mask (b, p + s), as torch's translation writes it.

    Args:
        rows, columns: what the ranges count: ``b``, ``s``, ``p`` or ``both``, the past and the new tokens.
        start, step: of the range of columns.
        swapped: columns along the first axis, rows along the last.
        asked: length of the last axis that the result is expanded to.
    """
    node = helper.make_node
    nodes = [node("Shape", [value], [f"{axis}1"], start=at, end=at + 1) for axis, value, at in
             (("b", "ids", 0), ("s", "ids", 1), ("p", "past", 2))]  # fmt: skip
    nodes += [node("Squeeze", [f"{axis}1"], [axis]) for axis in "bsp"]
    nodes += [
        node("Add", ["p", "s"], ["both"]), node("Cast", ["mask"], ["seen"], to=BOOL),
        node("Range", ["zero", rows, "one"], ["row"]), node("Range", ["start", columns, "step"], ["column"]),
        node("Range", ["zero", "s", "one"], ["new"]), node("Range", ["zero", "both", "one"], ["key"]),
        node("Add", ["new", "p"], ["query"]), node("Unsqueeze", ["query", "to_query"], ["queries"]),
        node("Unsqueeze", ["key", "to_column"], ["keys"]), node("LessOrEqual", ["keys", "queries"], ["causal"]),
        node("Unsqueeze", ["row", "to_column" if swapped else "to_row"], ["r4"]),
        node("Unsqueeze", ["column", "to_row" if swapped else "to_column"], ["c4"]), node("Max", ["r4", "c4"], ["grid"]),
        node("Shape", ["grid"], ["sizes"]), node("Expand", ["r4", "sizes"], ["re"]),
        node("Expand", ["c4", "sizes"], ["ce"]), node("Unsqueeze", ["re", "last"], ["r5"]),
        node("Unsqueeze", ["ce", "last"], ["c5"]), node("Concat", ["r5", "c5"], ["pairs"], axis=-1),
        node("GatherND", ["seen", "pairs"], ["real"]), node("And", ["causal", "real"], ["joined"]),
        node("Reshape", [asked, "last"], ["asked1"]), node("Concat", ["b1", "one1", "s1", "asked1"], ["shape"], axis=0),
        node("Expand", ["joined", "shape"], ["allowed"]), node("Identity", ["allowed"], ["y"]),
    ]  # fmt: skip
    constants = {"zero": 0, "one": 1, "start": start, "step": step, "one1": [1], "last": [-1],
                 "to_row": [1, 2, 3], "to_column": [0, 1, 2], "to_query": [0, 1, 3]}  # fmt: skip
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        nodes, "g",
        [value("ids", INT, ["b", "s"]), value("past", INT, ["b", 2, "p", 8]), value("mask", INT, ["b", "p + s"])],
        [value("y", BOOL, [None] * 4)],
        [onnx.numpy_helper.from_array(np.array(entry), name) for name, entry in constants.items()],
    )  # fmt: skip
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)


def rewritten(proto: onnx.ModelProto) -> tuple[int, onnx.ModelProto]:
    model = ir.from_proto(proto)
    infer_shapes(model)
    count = read_masks_whole(model)
    passes.RemoveUnusedNodesPass()(model)
    return count, ir.to_proto(model)


def run(proto: onnx.ModelProto, rows: int, new: int, past: int) -> np.ndarray:
    draw = np.random.default_rng(rows + new + past)
    feeds = {
        "ids": np.zeros((rows, new), np.int64),
        "past": np.zeros((rows, 2, past, 8), np.int64),
        "mask": draw.integers(0, 2, (rows, past + new)),
    }
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {name: feeds[name] for name in (value.name for value in session.get_inputs())})[0]


@pytest.mark.parametrize(("rows", "new", "past"), [(3, 5, 0), (3, 1, 4), (2, 3, 2), (1, 1, 0), (2, 0, 0), (0, 2, 0)])
def test_the_whole_mask_is_what_was_looked_up(rows: int, new: int, past: int) -> None:
    before = looked_up()
    count, after = rewritten(before)
    kinds = [node.op_type for node in after.graph.node]
    assert (
        count == 1 and "GatherND" not in kinds and "Expand" not in kinds and len(kinds) == len(before.graph.node) - 16
    )
    want, got = run(before, rows, new, past), run(after, rows, new, past)
    assert got.shape == want.shape == (rows, 1, new, past + new) and np.array_equal(got, want)


@pytest.mark.parametrize(
    "other",
    [{"rows": "s"}, {"columns": "s"}, {"columns": "p"}, {"start": 1}, {"step": 2}, {"swapped": True}],
    ids=str,
)
def test_a_part_of_the_mask_or_another_order_is_looked_up_still(other: dict) -> None:
    assert rewritten(looked_up(**other))[0] == 0


def test_an_expansion_to_another_length_stays() -> None:
    count, after = rewritten(looked_up(asked="s"))
    assert count == 1 and [node.op_type for node in after.graph.node].count("Expand") == 1


def test_lengths_of_a_deep_graph_are_given_up() -> None:
    """And are no recursion without end."""
    value = helper.make_tensor_value_info
    nodes = [helper.make_node("Not", [f"x{step}"], [f"x{step + 1}"]) for step in range(5000)]
    body = helper.make_graph(nodes, "g", [value("x0", BOOL, ["a"])], [value("x5000", BOOL, ["a"])])
    model = ir.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)]))
    infer_shapes(model)
    assert Lengths().of(model.graph.outputs[0]) is None
    assert Lengths().of(model.graph.node(10).outputs[0]) == [("a",)]


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Unsqueeze", ["x", "twice"], ["y"])],
        [
            helper.make_node("Shape", ["x"], ["n"], start=7, end=8),
            helper.make_node("Range", ["zero", "n", "one"], ["y"]),
        ],
        [helper.make_node("Range", ["zero", "half", "one"], ["y"])],
        [helper.make_node("Unsqueeze", ["x"], ["y"])],
    ],
    ids=["axes twice", "no such axis", "half a number", "no axes"],
)
def test_lengths_of_what_is_no_graph_are_given_up(nodes: list[onnx.NodeProto]) -> None:
    value = helper.make_tensor_value_info
    constants = {"twice": np.array([0, 0]), "zero": np.array(0), "one": np.array(1), "half": np.array(0.5)}
    stored = [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()]
    body = helper.make_graph(nodes, "g", [value("x", BOOL, ["a"])], [value("y", BOOL, None)], stored)
    model = ir.from_proto(helper.make_model(body, opset_imports=[helper.make_opsetid("", 23)]))
    for node in model.graph:
        for output in node.outputs:
            output.shape = ir.Shape([1]) if node.op_type == "Shape" else None
    assert Lengths().of(model.graph.outputs[0]) is None
