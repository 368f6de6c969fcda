"""Repairs of graphs in float16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from tests.graphs.audit.test_hidden_keys import plain
from tests.graphs.audit.test_rules import END, SCORES, VARIANTS
from tests.graphs.repair.test_repair import OPERATORS, SUMMED, mended


def halved(text: str, folder: Path) -> Path:
    """A graph in float16 as tools for graphics cards write them: stored numbers, inputs and outputs, nothing declared."""
    model = onnx.parser.parse_model(text)
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            half = onnx.numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(onnx.numpy_helper.from_array(half, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, folder / "graph.onnx")
    return folder / "graph.onnx"


BEHIND_A_NORM = OPERATORS["unidirectional"].replace("float[12] c", "float[4] g = {1.0, 1.0, 1.0, 1.0}, float[12] c").replace(
    "{ y = ", "{ n = com.microsoft.SkipLayerNormalization (x, x, g)\nz = "
).replace("(x, w, c, attention_mask)", "(n, w, c, attention_mask)\ny = com.microsoft.Gelu (z)")  # fmt: skip


@pytest.mark.parametrize(
    "text",
    [
        VARIANTS["added to each other"][1],
        SUMMED,
        plain("c = Cast <to = 10> (attention_mask)\nn = Sub (one, c)\nb = Mul (n, inf)\nrow = Unsqueeze (b, keys)\n"
              + SCORES + "masked = Add (scores, row)\n" + END).replace("bool yes", "float inf = {-inf}, bool yes"),
        OPERATORS["unidirectional"],
        OPERATORS["past"],
        OPERATORS["lengths of a mask"],
        BEHIND_A_NORM,
        VARIANTS["added to each other"][1].replace("kt = ", "n = com.microsoft.QuickGelu (q)\nkt = ").replace("(q,", "(n,"),
    ],
    ids=["a softmax", "one mask twice", "infinity", "Attention", "a past", "MultiHeadAttention", "unknown dtypes",
         "unknown scores"],
)  # fmt: skip
def test_float16(text: str, tmp_path: Path) -> None:
    """The mended graph stays in float16: what it gives has the dtype that its readers take."""
    done = mended(halved(text, tmp_path))
    assert done.proof is not None and done.proof.layers
