"""A Split into another number of parts than it names: ONNX Runtime 1.31 ends the process at its assertion."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.attacks import making


def test_a_split_that_miscounts_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    del model.opset_import[:]
    model.opset_import.add(domain="", version=18)
    split = onnx.helper.make_node("Split", ["x"], ["one", "two"], axis=2, num_outputs=3)
    model.graph.node.insert(1, split)
    making.refused(
        making.folder_with(model, tmp_path / "model"), "splits into 3 parts and names 2", monkeypatch, capsys
    )
