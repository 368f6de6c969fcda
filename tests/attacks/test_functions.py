"""Functions that call themselves, or unfold to more nodes than there is memory."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.attacks import making


def function(model: onnx.ModelProto, name: str, calls: list[str]) -> None:
    """A function x -> y in the domain ``own`` that calls others one after the other."""
    nodes = [
        onnx.helper.make_node(call, [f"v{index}" if index else "x"], [f"v{index + 1}"], domain="own")
        for index, call in enumerate(calls)
    ]
    nodes.append(onnx.helper.make_node("Identity", [f"v{len(calls)}" if calls else "x"], ["y"]))
    imports = [onnx.helper.make_opsetid("", 18), onnx.helper.make_opsetid("own", 1)]
    model.functions.append(onnx.helper.make_function("own", name, ["x"], ["y"], nodes, imports))


def calling(name: str) -> onnx.ModelProto:
    """The right graph, its scores through a function."""
    model = making.right()
    model.opset_import.add(domain="own", version=1)
    model.graph.node.insert(3, onnx.helper.make_node(name, ["scores"], ["scores2"], domain="own"))
    model.graph.node[7].input[1] = "scores2"
    return model


def test_function_that_calls_itself_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = calling("f")
    function(model, "f", ["f"])
    making.refused(making.folder_with(model, tmp_path / "model"), "f calls itself", monkeypatch, capsys)


def test_two_functions_that_call_each_other_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = calling("f")
    function(model, "f", ["g"])
    function(model, "g", ["f"])
    making.refused(making.folder_with(model, tmp_path / "model"), "calls itself", monkeypatch, capsys)


def test_doubling_functions_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Forty functions that each call the next twice are 2^40 nodes."""
    model = calling("f0")
    for index in range(40):
        function(model, f"f{index}", [f"f{index + 1}"] * 2)
    function(model, "f40", [])
    making.refused(making.folder_with(model, tmp_path / "model"), "once its functions are", monkeypatch, capsys)
