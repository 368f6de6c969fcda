"""Operators of domains that no runtime has: they would be loaded from a library."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.attacks import making


def test_unknown_domain_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    model.opset_import.add(domain="evil.example", version=1)
    model.graph.node[2].domain = "evil.example"
    making.refused(making.folder_with(model, tmp_path / "model"), "the domain evil.example", monkeypatch, capsys)


def test_unknown_domain_inside_a_branch_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = making.right()
    model.opset_import.add(domain="evil.example", version=1)
    branch = onnx.helper.make_graph([onnx.helper.make_node("Do", [], ["b"], domain="evil.example")], "b", [], [])
    model.graph.node.append(onnx.helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch))
    making.refused(making.folder_with(model, tmp_path / "model"), "the domain evil.example", monkeypatch, capsys)
