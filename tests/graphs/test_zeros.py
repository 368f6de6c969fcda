"""Lengths of 0 in Reshape."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
import torch

import trueport
from trueport.graphs.zeros import keep_zero_lengths


class Blocks(torch.nn.Module):
    """A table of as many whole blocks of four as there are in a row: none in a short one."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = x.shape[1] // 4
        table = torch.ones(x.shape[0], 3, count) * x[:, :1, None]
        return table.reshape(x.shape[0], 3, 1, count).transpose(2, 3), x.sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("length", [1, 3, 4, 9])
def test_a_quotient_of_zero_is_a_length(length: int, tmp_path: Path) -> None:
    module = Blocks().eval()
    trueport.export(module, tmp_path / "out", inputs={"x": torch.randn(2, 9)}, proof=False)
    x = torch.randn(5, length)
    found, _ = trueport.load(tmp_path / "out").step({"x": x})
    for got, wanted in zip(found.values(), module(x), strict=True):
        assert got.shape == wanted.shape and torch.allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize(("last", "told"), [("count", 1), ("-1", 0), ("0", 0), ("size", 0)])
def test_a_length_that_is_copied_or_worked_out_stays_so(last: str, told: int) -> None:
    """A target may not hold -1 beside zeros that are lengths, and a 0 that is written there means a copy."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(["n", "m"]))
    four, fixed = (
        ir.node("Constant", [], {"value_ints": [number]}) for number in (4, int(last) if last[-1] in "01" else 1)
    )
    size = ir.node("Shape", [x], {"start": 1})
    count = ir.node("Div", [size.outputs[0], four.outputs[0]])
    part = {"count": count, "size": size}.get(last, fixed)
    shape = ir.node("Concat", [(count if last in ("-1", "0") else fixed).outputs[0], part.outputs[0]], {"axis": 0})
    reshape = ir.node("Reshape", [x, shape.outputs[0]])
    nodes = [four, fixed, size, count, shape, reshape]
    model = ir.Model(ir.Graph([x], reshape.outputs, nodes=nodes, opset_imports={"": 18}), ir_version=10)
    assert keep_zero_lengths(model) == told
    assert ("allowzero" in reshape.attributes) == bool(told)
