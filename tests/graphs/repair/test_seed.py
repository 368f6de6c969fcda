"""The seed's experiment: what ONNX Runtime's operators do, and what their repair does, on every row of 256 masks."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.graphs.repair import seed
from trueport.attention import reference
from trueport.graphs.audit import audit
from trueport.graphs.repair import repair

COUNT = 256
LARGE = 8.17
"""Gain of queries and keys at which the largest score is 35,000."""


def outputs(path: Path, masks: np.ndarray) -> np.ndarray:
    """float32 (masks, 7, 481)."""
    session = onnxruntime.InferenceSession(str(path))
    x = np.repeat(seed.hidden_states(), len(masks), axis=0)
    return session.run(None, {"x": x, "mask_index": masks})[0]


@functools.cache
def wanted(kind: str, gain: float, rows: str) -> np.ndarray:
    """The reference on all masks, float64 (masks, 7, 481)."""
    q, k, v = (np.repeat(part, COUNT, axis=0) for part in seed.heads(kind, gain))
    out = reference(q, k, v, mask=seed.masks(COUNT), causal=True, rows=rows)
    return out.swapaxes(1, 2).reshape(COUNT, seed.LENGTH, -1)


def errors(got: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The largest error of every row (masks, 7), relative to its largest entry; of rows of zeros as it is."""
    size = np.abs(right).max(axis=-1)
    return np.abs(got - right).max(axis=-1) / np.where(size > 0, size, 1)


def empty() -> np.ndarray:
    """Rows that see no key: bool (masks, 7)."""
    return np.cumsum(seed.masks(COUNT), axis=1) == 0


@pytest.mark.parametrize("kind", seed.KINDS)
def test_before(kind: str, tmp_path: Path) -> None:
    """Rows without keys are all wrong: one row in seven of the seed's mask. The others are right."""
    got, right = outputs(seed.build(kind, tmp_path / "a.onnx"), seed.masks(COUNT)), wanted(kind, 1.0, "uniform")
    differs = np.abs(got - right) > 1e-3 * np.abs(right).max()
    assert differs[0].mean() == pytest.approx(1 / 7, abs=0.001)  # the seed's mask: 14.3% of its elements
    assert differs.mean() == pytest.approx(empty().mean(), abs=0.002) and differs.mean() > 0.08
    assert errors(got, right)[~empty()].max() < 2.5e-5
    assert errors(got, right)[empty()].min() > 0.1


@pytest.mark.parametrize("kind", seed.KINDS)
def test_before_at_large_scores(kind: str, tmp_path: Path) -> None:
    """At 35,000 the fill of -10000 is outweighed, and real rows are wrong too; the lowest float leaves them nearly right."""
    q, k, _ = seed.heads(kind, LARGE)
    assert np.abs(q @ k.swapaxes(-1, -2)).max() / np.sqrt(seed.SIZE) == pytest.approx(35_000, rel=0.01)
    masks, right = seed.masks(COUNT), wanted(kind, LARGE, "uniform")
    got = outputs(seed.build(kind, tmp_path / "a.onnx", gain=LARGE), masks)
    assert errors(got, right)[~empty()].max() > 1
    lowest = float(np.finfo(np.float32).min)
    got = outputs(seed.build(kind, tmp_path / "b.onnx", gain=LARGE, fill=lowest), masks)
    assert errors(got, right)[~empty()].max() < 1e-2


@pytest.mark.parametrize(("gain", "rows"), [(1.0, "uniform"), (LARGE, "uniform"), (LARGE, "zeros")])
@pytest.mark.parametrize("kind", seed.KINDS)
def test_after(kind: str, gain: float, rows: str, tmp_path: Path) -> None:
    """Every row of every mask lies within 1e-5 of the reference, relative to its own largest entry."""
    graph = seed.build(kind, tmp_path / "a.onnx", gain=gain)
    rules = {finding.rule for finding in audit(graph).errors}
    assert rules == ({"summed-masks"} if gain == 1 else {"summed-masks", "reachable-fill"})
    done = repair(graph, tmp_path / "b.onnx", rows=rows)
    assert done.proof is not None and done.proof.proven and done.after is not None and done.after.clean
    (layer,) = done.proof.layers
    assert layer.wrong_before > 0 and layer.wrong_after == 0 and layer.allowed == 1e-5
    got = outputs(tmp_path / "b.onnx", seed.masks(COUNT))
    assert errors(got, wanted(kind, gain, rows)).max() < 1e-5


@pytest.mark.parametrize("kind", ["QAttention u8", "QAttention s8"])
def test_quantised_weights_stay(kind: str, tmp_path: Path) -> None:
    """The same integers, once, and no float copy of them."""
    graph = seed.build(kind, tmp_path / "a.onnx")
    repair(graph, tmp_path / "b.onnx", proof=False)
    before, after = (
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(path).graph.initializer}
        for path in (graph, tmp_path / "b.onnx")
    )
    np.testing.assert_array_equal(before["w"], after["w"])
    assert after["w"].dtype == before["w"].dtype
    assert not any(array.size > 2000 for name, array in after.items() if name != "w")
    operators = {node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node}
    assert "MatMulInteger" in operators and "QAttention" not in operators
