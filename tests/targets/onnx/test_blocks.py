"""Weights in few bits: what is packed is what ONNX Runtime multiplies with, row by row."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from trueport.targets.onnx.blocks import LARGEST, SIZES, Blocks, in_blocks, in_columns, restored, size_of
from trueport.targets.onnx.quantize import ACCURACY, BITS

ROWS = (1, 2, 3, 5, 8, 17, 40)


def operator(blocks: Blocks) -> onnxruntime.InferenceSession:
    """``MatMulNBits`` over the blocks, (rows, width) to (rows, outputs)."""
    outputs, width = len(blocks.scales), blocks.width
    arrays = {"b": blocks.packed, "s": blocks.scales, "z": blocks.zeros}
    constants = {name: ir.tensor(array, name=name) for name, array in arrays.items() if array is not None}
    values = {
        name: ir.Value(name=name, type=ir.TensorType(t.dtype), shape=ir.Shape(t.numpy().shape), const_value=t)
        for name, t in constants.items()
    }
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["rows", width]))
    numbers = {"K": width, "N": outputs, "bits": blocks.bits, "block_size": blocks.size, "accuracy_level": ACCURACY}
    node = ir.node("MatMulNBits", [x, *values.values()], numbers, domain="com.microsoft")
    node.outputs[0].name, node.outputs[0].type = "y", x.type
    node.outputs[0].shape = ir.Shape(["rows", outputs])
    graph = ir.Graph(
        [x], node.outputs, nodes=[node], initializers=list(values.values()), opset_imports={"": 21, "com.microsoft": 1}
    )
    model = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString()
    return onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("width", [1, 31, 40, 64, 100, 256])
@pytest.mark.parametrize(("bits", "size"), [*BITS.values(), (8, 128), (4, 128)])
def test_the_operator_multiplies_with_what_was_packed_and_no_row_reads_another(bits: int, size: int, width: int):
    rng = np.random.default_rng(width)
    matrix = rng.normal(size=(33, width)).astype(np.float32)
    blocks = in_blocks(matrix, bits, size)
    near = restored(blocks)
    assert np.abs(near - matrix).max() <= blocks.scales.max() * 0.5001
    x = rng.normal(size=(max(ROWS), width)).astype(np.float32)
    x[20:] *= 1000
    session = operator(blocks)
    whole = session.run(None, {"x": x})[0]
    most = np.abs(x).max(1, keepdims=True) * np.abs(near).sum(1)
    assert (np.abs(whole - x @ near.T) <= most / 127).all(), "activations in int8, by the row"
    room = most * (
        0 if (bits, size) in BITS.values() else 1e-6
    )  # larger blocks: one row is summed in an order of its own
    for rows in ROWS:
        assert (np.abs(session.run(None, {"x": x[:rows]})[0] - whole[:rows]) <= room[:rows]).all()


@pytest.mark.parametrize(
    ("width", "eight", "four"), [(1, 16, 16), (31, 32, 32), (40, 16, 64), (64, 64, 64), (192, 64, 64), (768, 128, 128)]
)
def test_a_row_takes_the_fewest_bytes(width: int, eight: int, four: int):
    matrix = np.random.default_rng(0).normal(size=(3, width)).astype(np.float32)
    for bits, size in ((8, eight), (4, four)):
        sizes = {other: _bytes(in_blocks(matrix, bits, other)) for other in SIZES}
        assert size_of(width, bits, 128) == size and sizes[size] == min(sizes.values())
        assert size_of(width, bits, 16) == 16


def _bytes(blocks: Blocks) -> int:
    return sum(array.nbytes for array in (blocks.packed, blocks.scales, blocks.zeros) if array is not None)


@pytest.mark.parametrize("form", BITS)
def test_blocks_of_zeros_of_one_sign_and_of_one_value_are_kept(form: str):
    matrix = np.zeros((4, 64), np.float32)
    matrix[1], matrix[2] = 3.0, -0.25
    matrix[3, ::2] = 7.5
    assert np.allclose(restored(in_blocks(matrix, *BITS[form])), matrix, atol=1e-6)


def test_columns_leave_room_for_processors_that_add_two_products_in_16_bits():
    matrix = np.random.default_rng(0).normal(size=(9, 50)).astype(np.float32)
    matrix[4] = 0
    columns = in_columns(matrix)
    assert np.abs(columns.values).max() == LARGEST and 2 * 255 * LARGEST < 2**15
    assert columns.values.shape == (50, 9)
    assert (np.abs(columns.values.T * columns.scales[:, None] - matrix) <= columns.scales[:, None] * 0.5001).all()
