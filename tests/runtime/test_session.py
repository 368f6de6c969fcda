"""The session's own way with dtypes and states, on a graph written by hand: running sums of half-width floats."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from transformers.utils import ModelOutput

from trueport.dtypes import numpy_dtype
from trueport.errors import RunError
from trueport.runtime import load
from trueport.targets.onnx.session import OnnxSession

DTYPES = ["float32", "float16", "bfloat16"]


def write_graph(path: Path, dtype: str) -> dict[str, object]:
    """``x`` joins the state ``mems``; gives out the joined length's mask as booleans too. Returns the interface."""
    kind = getattr(TensorProto, {"float32": "FLOAT"}.get(dtype, dtype.upper()))
    step, past, total = ("batch_size", "steps", 2), ("batch_size", "past", 2), ("batch_size", "past + steps", 2)
    graph = helper.make_graph(
        [
            helper.make_node("Concat", ["mems", "x"], ["present_mems"], axis=1),
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("Not", ["flag"], ["other"]),
        ],
        "joined",
        [
            helper.make_tensor_value_info("x", kind, step),
            helper.make_tensor_value_info("flag", TensorProto.BOOL, ("batch_size",)),
            helper.make_tensor_value_info("mems", kind, past),
        ],
        [
            helper.make_tensor_value_info("y", kind, step),
            helper.make_tensor_value_info("other", TensorProto.BOOL, ("batch_size",)),
            helper.make_tensor_value_info("present_mems", kind, total),
        ],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    flag = {"dtype": "bool", "shape": ["batch_size"]}
    return {
        "inputs": [
            {"name": "x", "dtype": dtype, "shape": step},
            {"name": "flag", **flag},
            {"name": "mems", "dtype": dtype, "shape": past},
        ],
        "outputs": [
            {"name": "y", "dtype": dtype, "shape": step},
            {"name": "other", **flag},
            {"name": "present_mems", "dtype": dtype, "shape": total},
        ],
        "state": [{"input": "mems", "output": "present_mems", "axis": 1, "initial": "empty"}],
        "dimensions": {"batch_size": [1, None], "steps": [1, 4], "past": [0, None]},
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_arrays(tmp_path: Path, dtype: str):
    """Through NumPy, as the proof asks: every dtype in and out, and the interface read off the graph."""
    write_graph(tmp_path / "g.onnx", dtype)
    session = OnnxSession(tmp_path / "g.onnx")
    x = np.arange(8).reshape(2, 2, 2).astype(numpy_dtype(dtype))
    flag = np.array([True, False])
    outputs, state = session.step({"x": x, "flag": flag}, session.empty_state(2))
    assert set(outputs) == {"y", "other"}
    outputs, state = session.step({"x": x, "flag": flag}, state.take(np.array([1, 0])))
    assert outputs["y"].dtype == x.dtype and (outputs["y"] == x).all()
    assert outputs["other"].tolist() == [False, True]
    assert state.length("mems", 1) == 4
    whole = session.run({"x": x, "flag": flag, "mems": x[[1, 0]]})
    assert (whole["present_mems"].astype(float) == state.tensors()["mems"].double().numpy()).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors(tmp_path: Path, dtype: str):
    """Through torch, without a copy: what comes out is what the next step is given."""
    write_graph(tmp_path / "g.onnx", dtype)
    session = OnnxSession(tmp_path / "g.onnx")
    x, flag = torch.arange(8).reshape(2, 2, 2).to(getattr(torch, dtype)), torch.tensor([True, False])
    outputs, state = session.advance({"x": x, "flag": flag}, session.empty_state(2))
    assert torch.equal(outputs["y"], x) and torch.equal(outputs["other"], ~flag)
    assert state.tensors()["mems"].data_ptr() == state.values["mems"].data_ptr()
    _, state = session.advance({"x": x, "flag": flag}, state)
    assert torch.equal(state.tensors()["mems"], torch.cat([x, x], dim=1))
    shorter = state.shorten({"mems": 1}, 1).take([1])
    assert torch.equal(shorter.tensors()["mems"], torch.cat([x, x], dim=1)[1:, :3])
    assert state.length("mems", 1) == 4


def test_any_state_is_a_model(tmp_path: Path):
    """A module that is neither an encoder nor a decoder: called, stepped, with transformers' generic output."""
    interface = write_graph(tmp_path / "onnx" / "model.onnx", "float32")
    manifest = {
        "schema_version": 1,
        "source": {"role": "custom", "task": None},
        "components": {"model": {"target": "onnx", "file": "onnx/model.onnx"} | interface},
    }
    (tmp_path / "trueport.json").write_text(json.dumps(manifest))
    model = load(tmp_path)
    feeds = {"x": torch.ones(3, 2, 2), "flag": torch.tensor([True, False, True])}
    result = model(**feeds)
    assert type(result) is ModelOutput and torch.equal(result.y, feeds["x"])
    _, state = model.step(feeds)
    _, state = model.step(feeds, state)
    assert state.length("mems", 1) == 4
    with pytest.raises(RunError, match=r"steps is 5; model\.onnx serves at most 4"):
        model(x=torch.ones(3, 5, 2), flag=feeds["flag"])
    with pytest.raises(RunError, match="needs flag"):
        model(x=feeds["x"])
    with pytest.raises(RunError, match=r"not \(2,\) where batch_size is 3"):
        model.step({"x": feeds["x"], "flag": feeds["flag"][:2]}, state)


def test_refusals(tmp_path: Path):
    write_graph(tmp_path / "g.onnx", "float32")
    session = OnnxSession(tmp_path / "g.onnx")
    x, flag = np.ones((1, 2, 2), np.float32), np.array([True])
    with pytest.raises(RunError, match="has no input z"):
        session.run({"z": x})
    with pytest.raises(RunError, match=r"g.onnx refuses x \(1, 2, 2\)"):
        session.run({"x": x})
    with pytest.raises(RunError, match=r"g.onnx refuses x \(1, 2, 2\), flag \(1,\)"):
        session.step({"x": x.astype(np.float64), "flag": flag}, session.empty_state(1))
