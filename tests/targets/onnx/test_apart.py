"""Runs in a process of their own: what the runtime refuses, and what it does not survive."""

from __future__ import annotations

import signal
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from trueport.targets.onnx import apart

READ = "feeds = dict(arrays)\n"
DEATH = f"""
        if number == 1:
            import os
            os.kill(os.getpid(), {int(signal.SIGFPE)})
"""


def sum_of(path: Path) -> Path:
    """a + b, both float32 of one dynamic length."""
    ins = [ir.Value(name=n, shape=ir.Shape(["n"]), type=ir.TensorType(ir.DataType.FLOAT)) for n in "ab"]
    node = ir.node("Add", ins)
    node.outputs[0].name, node.outputs[0].type = "c", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(ins, node.outputs, nodes=[node], opset_imports={"": 18})
    ir.save(ir.Model(graph, ir_version=10), path)
    return path


def feeds(first: int, second: int) -> dict[str, np.ndarray]:
    return {"a": np.ones(first, np.float32), "b": np.ones(second, np.float32)}


def test_a_refusal_is_none_and_the_others_go_on(tmp_path: Path) -> None:
    results = apart.run_apart(sum_of(tmp_path / "sum.onnx"), [feeds(0, 0), feeds(2, 3), feeds(3, 3)])
    assert results[0] is not None and results[0]["c"].shape == (0,)
    assert results[1] is None
    assert results[2] is not None and results[2]["c"].tolist() == [2, 2, 2]


def test_a_process_that_dies_is_begun_again_behind_the_run_that_it_died_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its second run the process sends itself the signal of a division by zero."""
    dying = tmp_path / "dying.py"
    dying.write_text(Path(apart.__file__).read_text().replace(READ, READ + DEATH))
    assert DEATH in dying.read_text()
    monkeypatch.setattr(apart, "__file__", str(dying))
    results = apart.run_apart(sum_of(tmp_path / "sum.onnx"), [feeds(1, 1), feeds(2, 2), feeds(3, 3)])
    assert [result is None for result in results] == [False, True, False]
