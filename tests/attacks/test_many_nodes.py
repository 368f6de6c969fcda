"""A million nodes: answered before anyone walks them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.attacks import making


@pytest.mark.slow
def test_million_nodes_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    for index in range(1_000_000):
        node = model.graph.node.add()
        node.op_type = "Relu"
        node.input.append(f"v{index}" if index else "scores")
        node.output.append(f"v{index + 1}")
    path = making.folder_with(model, tmp_path / "model")
    making.refused(path, "more than 200,000 nodes", monkeypatch, capsys)
