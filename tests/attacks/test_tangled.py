"""Graphs that are small, legal, and made to be walked forever."""

from __future__ import annotations

import time
from pathlib import Path

import onnx
import pytest

from tests.attacks import making
from trueport.errors import TrueportError
from trueport.graphs.audit import audit, view


def test_sums_that_double_are_bounded(tmp_path: Path) -> None:
    """A mask added to itself forty times has 2^40 summands."""
    model = making.right()
    nodes = [onnx.helper.make_node("Where", ["keys", "zero", "low"], ["m0"])]
    nodes += [onnx.helper.make_node("Add", [f"m{i}", f"m{i}"], [f"m{i + 1}"]) for i in range(40)]
    nodes.append(onnx.helper.make_node("Add", ["scores", "m40"], ["masked"]))
    for name, value in (("zero", 0.0), ("low", -1e4)):
        model.graph.initializer.append(onnx.helper.make_tensor(name, 1, [], [value]))
    place = next(i for i, node in enumerate(model.graph.node) if node.op_type == "Where")
    rest = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend([*rest[:place], *nodes, *rest[place + 1 :]])
    start = time.monotonic()
    assert audit(making.folder_with(model, tmp_path / "model")).of("summed-masks")
    assert time.monotonic() - start < making.SECONDS


@pytest.mark.slow
def test_long_masks_of_many_layers_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask of 50,000 nodes that 5,000 layers each change a little; a quarter of the patience, in a quarter of the time."""
    monkeypatch.setattr(view, "PATIENCE", view.PATIENCE // 4)
    model = making.right()
    nodes = [onnx.helper.make_node("Not", ["keys" if not i else f"c{i}"], [f"c{i + 1}"]) for i in range(50_000)]
    for i in range(5_000):
        nodes.append(onnx.helper.make_node("Not", ["c50000"], [f"n{i}"]))
        nodes.append(onnx.helper.make_node("Where", [f"n{i}", "scores", "fill"], [f"s{i}"]))
        nodes.append(onnx.helper.make_node("Softmax", [f"s{i}"], [f"w{i}"]))
    model.graph.initializer.append(onnx.helper.make_tensor("low", 1, [], [-1e4]))
    model.graph.node.extend(nodes)
    start = time.monotonic()
    try:
        audit(making.folder_with(model, tmp_path / "model"))
    except TrueportError as error:
        assert "too tangled" in str(error)
    assert time.monotonic() - start < making.SECONDS
