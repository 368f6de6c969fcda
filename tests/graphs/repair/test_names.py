"""Graphs whose names are those that a repair gives."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.graphs.audit.test_rules import VARIANTS
from tests.graphs.repair.test_repair import mended


@pytest.mark.parametrize("name", ["repair/weights/Cast_1_output", "repair/weights/const_2"])
def test_a_graph_may_have_the_repairs_names(name: str, tmp_path: Path) -> None:
    """One that was repaired before."""
    model = onnx.parser.parse_model(VARIANTS["added to each other"][1])
    renamed = "fill" if "const" in name else "scores"
    for node in model.graph.node:
        node.input[:] = [name if given == renamed else given for given in node.input]
        node.output[:] = [name if given == renamed else given for given in node.output]
    for tensor in model.graph.initializer:
        tensor.name = name if tensor.name == renamed else tensor.name
    onnx.save(model, tmp_path / "graph.onnx")
    mended(tmp_path / "graph.onnx")
