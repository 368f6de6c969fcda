"""The experiment's operators in NumPy give what ONNX Runtime gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from trueport.graphs.audit.experiment.arithmetic import compute

MASK = np.array([[1, 1, 0, 1, 0], [0, 0, 1, 1, 1], [1, 0, 1, 1, 0]])
FLOATS = np.linspace(-2, 3, 60, dtype=np.float32).reshape(3, 4, 5)
I64 = np.int64
CASES: dict[str, tuple[str, list[Any], dict[str, Any]]] = {
    "the last axis, flattened": ("Flatten", [FLOATS], {"axis": -1}),
    "all axes, by an empty list": ("ReduceMin", [MASK, np.array([], I64)], {}),
    "no axes, by an empty list": ("ReduceMin", [MASK, np.array([], I64)], {"noop_with_empty_axes": 1}),
    "an axis, kept": ("ReduceMax", [MASK, np.array([1])], {"keepdims": 1}),
    "split in three, unevenly": ("Split", [FLOATS], {"axis": 2, "num_outputs": 3, "outputs": 3}),
    "split by sizes": ("Split", [FLOATS, np.array([1, 4])], {"axis": -1, "outputs": 2}),
    "sums": ("CumSum", [MASK, np.int64(1)], {}),
    "sums from the end": ("CumSum", [MASK, np.int64(1)], {"reverse": 1}),
    "sums of what goes before": ("CumSum", [MASK, np.int64(-1)], {"exclusive": 1}),
    "sums of what follows": ("CumSum", [MASK, np.int64(1)], {"exclusive": 1, "reverse": 1}),
    "the first token": ("ArgMax", [MASK], {"axis": 1, "keepdims": 0}),
    "the last token": ("ArgMax", [MASK], {"axis": 1, "select_last_index": 1}),
    "the last padding": ("ArgMin", [MASK], {"axis": -1, "keepdims": 0, "select_last_index": 1}),
    "remainders": ("Mod", [np.array([-3, 5, 7]), np.array([2, -3, 2])], {}),
    "remainders of the dividend's sign": ("Mod", [FLOATS, np.float32([0.75])], {"fmod": 1}),
    "infinite above": ("IsInf", [np.float32([np.inf, -np.inf, 1])], {"detect_negative": 0}),
    "infinite below": ("IsInf", [np.float32([np.inf, -np.inf, 1])], {"detect_positive": 0}),
    "either and not both": ("BitwiseXor", [MASK, np.array([1, 0, 1, 0, 1])], {}),
    "one of two": ("OneHot", [MASK, np.int64(2), np.float32([0, 1])], {"axis": -1}),
    "one of three, in front": ("OneHot", [MASK, np.array([3]), np.float32([-1, 7])], {"axis": 1}),
    "places": ("NonZero", [MASK], {}),
    "the best": ("TopK", [np.float32([[3, 1, 2], [5, 9, 7]]), np.array([2])], {"axis": 1, "outputs": 2}),
    "the least": ("TopK", [np.float32([[3, 1, 2], [5, 9, 7]]), np.array([2])], {"largest": 0, "outputs": 2}),
    "the best of equal ones": ("TopK", [MASK, np.array([3])], {"axis": 1, "outputs": 2}),
    "put along an axis": ("ScatterElements", [MASK, np.array([[1], [0], [4]]), np.array([[9], [8], [7]])], {"axis": 1}),
    "ones on the diagonal": ("EyeLike", [MASK], {"k": 1, "dtype": onnx.TensorProto.FLOAT}),
    "chosen by a condition": ("Compress", [MASK, np.array([True, False, True])], {"axis": 1}),
    "cut from the end": (
        "Slice", [MASK, np.array([-1]), np.array([-(2**63) + 1]), np.array([1]), np.array([-2])], {},
    ),
    "divided": ("Div", [np.array([-7, 7, 8]), np.array([2, -2, 3])], {}),
    "a triangle": ("Trilu", [FLOATS, np.int64(-1)], {"upper": 0}),
    "padded": ("Pad", [MASK, np.array([0, 1, 0, 2]), np.int64(5)], {}),
    "picked": ("Gather", [MASK, np.array([[-1, 0]])], {"axis": 1}),
    "picked along": ("GatherElements", [MASK, np.array([[0, 4], [1, 1], [2, 3]])], {"axis": 1}),
    "picked by places": ("GatherND", [FLOATS, np.array([[[0, 1]], [[3, 4]], [[1, 1]]])], {"batch_dims": 1}),
    "copied": ("Reshape", [FLOATS, np.array([0, -1])], {}),
    "rounded": ("Round", [np.float32([0.5, 1.5, -2.5, 2.4])], {}),
    "to integers": ("Cast", [FLOATS], {"to": onnx.TensorProto.INT64}),
    "to yes and no": ("Cast", [FLOATS], {"to": onnx.TensorProto.BOOL}),
    "no less and no more": ("Clip", [FLOATS, np.float32(-1), np.float32(1)], {}),
    "means": ("ReduceMean", [FLOATS, np.array([0, 2])], {"keepdims": 0}),
}  # fmt: skip


def given(kind: str, arrays: list[Any], attributes: dict[str, Any]) -> list[np.ndarray]:
    """What ONNX Runtime makes of it."""
    names = [f"i{place}" for place in range(len(arrays))]
    outputs = [f"o{place}" for place in range(attributes.get("outputs", 1))]
    rest = {name: value for name, value in attributes.items() if name != "outputs"}
    node = onnx.helper.make_node(kind, names, outputs, **rest)
    taken = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(np.asarray(array).dtype), np.shape(array)
        )
        for name, array in zip(names, arrays, strict=True)
    ]
    graph = onnx.helper.make_graph([node], "g", taken, [onnx.helper.make_empty_tensor_value_info(o) for o in outputs])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    return list(session.run(None, {name: np.asarray(array) for name, array in zip(names, arrays, strict=True)}))


@pytest.mark.parametrize("name", CASES)
def test_operators_are_the_runtimes(name: str) -> None:
    kind, arrays, attributes = CASES[name]
    rest = {name: value for name, value in attributes.items() if name != "outputs"}
    node = onnx.helper.make_node(kind, [], [f"o{place}" for place in range(attributes.get("outputs", 1))], **rest)
    found = compute(ir.from_proto(node), [np.asarray(array) for array in arrays])
    for got, wanted in zip(found, given(kind, arrays, attributes), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)
        assert got.dtype == wanted.dtype
