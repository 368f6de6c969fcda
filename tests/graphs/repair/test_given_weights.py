"""Softmaxes whose weights are an output of the graph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from tests.graphs.audit.test_rules import VARIANTS
from tests.graphs.repair.test_repair import mended, saved

GIVEN = VARIANTS["added to each other"][1].replace(
    "(float[batch, 2, length, 4] y)", "(float[batch, 2, length, 4] y, float[batch, 2, length, length] weights)"
)
ALONE = (
    VARIANTS["added to each other"][1]
    .replace("(float[batch, 2, length, 4] y)", "(float[batch, 2, length, length] weights)")
    .replace("y = MatMul (weights, v)\n", "")
)


@pytest.mark.parametrize("rows", ["uniform", "zeros"])
@pytest.mark.parametrize("text", [GIVEN, ALONE], ids=["beside what is made of them", "alone"])
def test_rows_without_keys_are_the_policys(text: str, rows: str, tmp_path: Path) -> None:
    path = saved(text, tmp_path)
    mended(path, rows=rows)
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((1, 2, 5, 4)).astype(np.float32) for _ in range(3))
    mask = np.array([[[[False, False, True, True, True]]]])
    feeds = {"q": q, "k": k, "v": v, "attention_mask": mask, "causal": np.tril(np.ones((1, 1, 5, 5), dtype=bool))}
    session = onnxruntime.InferenceSession(tmp_path / "fixed.onnx")
    taken = {value.name for value in session.get_inputs()}
    (weights,) = session.run(["weights"], {name: array for name, array in feeds.items() if name in taken})
    assert np.allclose(weights[:, :, :2], 0.2 if rows == "uniform" else 0.0)
    assert np.allclose(weights[:, :, 2:].sum(axis=-1), 1.0)
