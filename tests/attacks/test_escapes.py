"""Names that move a terminal's cursor, in what ONNX Runtime says of a graph."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.attacks.making import RIGHT, folder_with, run


def test_escapes_of_a_nodes_name_do_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two nodes of one name: the runtime refuses the graph, and says the name."""
    model = onnx.parser.parse_model(RIGHT.replace("-3.4e38", "-30.0"))
    for node in model.graph.node:
        node.name = "evil\n\x1b[2J"
    path = folder_with(model, tmp_path)
    code, said = run(monkeypatch, capsys, "repair", path, "-o", tmp_path / "fixed.onnx")
    assert code == 2 and "same node name" in said and said.count("\n") == 1
    assert said.rstrip("\n").isprintable()
