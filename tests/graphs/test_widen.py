"""Arithmetic that the runtime lacks, or does badly, is done wider and rounded."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from trueport.graphs.widen import double_transforms, widen_bfloat16


def graph(op: str, arity: int, dtype: int) -> ir.Model:
    """Cast float32 inputs to ``dtype``, apply ``op``, cast back."""
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, ["n"]) for i in range(arity)]
    nodes = [helper.make_node("Cast", [f"x{i}"], [f"c{i}"], to=dtype) for i in range(arity)]
    nodes.append(helper.make_node(op, [f"c{i}" for i in range(arity)], ["y"]))
    nodes.append(helper.make_node("Cast", ["y"], ["z"], to=TensorProto.FLOAT))
    values = [helper.make_tensor_value_info(name, dtype, ["n"]) for name in [f"c{i}" for i in range(arity)] + ["y"]]
    output = helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n"])
    proto = helper.make_graph(nodes, "g", inputs, [output], value_info=values)
    return ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))


def run(model: ir.Model, *arrays: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {f"x{i}": array for i, array in enumerate(arrays)})[0]


def test_without_it_the_runtime_refuses() -> None:
    with pytest.raises(Exception, match=r"NOT_IMPLEMENTED|Could not find an implementation"):
        run(graph("Mul", 2, TensorProto.BFLOAT16), np.ones(3, np.float32), np.ones(3, np.float32))


finite = st.floats(-1e6, 1e6, width=32)


@pytest.mark.slow
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=8), st.sampled_from(["Add", "Sub", "Mul"]))
def test_bfloat16_arithmetic_is_rounded_correctly(pairs: list[tuple[float, float]], op: str) -> None:
    model = graph(op, 2, TensorProto.BFLOAT16)
    assert widen_bfloat16(model) == 1
    first, second = (np.array(column, dtype=np.float32) for column in zip(*pairs, strict=True))
    narrow = [array.astype(ml_dtypes.bfloat16) for array in (first, second)]
    wanted = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply}[op](
        *(array.astype(np.float64) for array in narrow)
    )
    # Twice rounded, through float32: for sums that may fall on the other side of a tie in the last place.
    expected = wanted.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float32)
    np.testing.assert_array_equal(run(model, first, second), expected)


def test_other_dtypes_are_left_alone() -> None:
    model = graph("Mul", 2, TensorProto.DOUBLE)
    assert widen_bfloat16(model) == 0


def test_a_graph_output_keeps_its_name_and_type(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [3])
    y = helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [3])
    proto = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", [x], [y])
    model = ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    widen_bfloat16(model)
    made = ir.to_proto(model)
    onnx.checker.check_model(made)
    assert [(o.name, o.type.tensor_type.elem_type) for o in made.graph.output] == [("y", TensorProto.BFLOAT16)]


def test_fourier_transforms_are_taken_in_double() -> None:
    x = helper.make_tensor_value_info("x0", TensorProto.FLOAT, [1, "n", 2])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, "n", 2])
    axis = helper.make_tensor("axis", TensorProto.INT64, [], [1])
    proto = helper.make_graph([helper.make_node("DFT", ["x0", "", "axis"], ["y"])], "g", [x], [y], [axis])
    model = ir.from_proto(helper.make_model(proto, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    array = np.random.default_rng(0).standard_normal((1, 33, 2)).astype(np.float32)
    exact = np.fft.fft(array[..., 0].astype(np.float64) + 1j * array[..., 1], axis=1)
    before = np.abs(run(model, array)[..., 0] - exact.real).max()
    double_transforms(model)
    after = np.abs(run(model, array)[..., 0] - exact.real).max()
    assert after < 2e-6 < before
