"""Our optimizer gives onnxscript's own graph, only sooner."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx_ir as ir
import pytest
import torch
from onnxscript.optimizer import optimize_ir

import trueport
from tests import zoo
from trueport.capture import capture
from trueport.graphs.optimize import optimize
from trueport.roles import components
from trueport.targets.onnx import lower


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
def test_same_graph_as_onnxscript(name: str) -> None:
    for component in components(zoo.build(name)):
        model = lower._convert(capture(component), lower.DEFAULT_OPSET)
        weights = lower._name_weights(model)
        # Both start from the same bytes; metadata names rules and nodes, which is not what is compared.
        content = ir.to_proto(model).SerializeToString()
        ours, theirs = (ir.from_proto(onnx.load_from_string(content)) for _ in range(2))
        optimize(ours, weights)

        def should_fold(node: ir.Node, names: set[str] = weights) -> bool | None:
            return False if any(value is not None and value.name in names for value in node.inputs) else None

        optimize_ir(theirs, should_fold=should_fold)
        for graph in (ours, theirs):
            lower._strip(graph)
        assert ir.to_proto(ours).SerializeToString() == ir.to_proto(theirs).SerializeToString()


def test_a_tensor_is_clipped_twice(tmp_path: Path) -> None:
    class Twice(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return (x.clamp(-9, 9) @ x.transpose(1, 2)) @ x.clamp(-9, 7)

    x = torch.randn(2, 4, 6)
    trueport.export(Twice().eval(), tmp_path / "out", inputs={"x": x}, proof=False)
    found, _ = trueport.load(tmp_path / "out").step({"x": 5 * x})
    torch.testing.assert_close(next(iter(found.values())), Twice()(5 * x), rtol=1e-4, atol=1e-4)
