"""Masks that are stored in the graph, opsets without Where, and names of axes and domains that exporters choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.graphs.audit.test_hidden_keys import IDS, REAL
from tests.graphs.audit.test_rules import END, SCORES, graph
from tests.graphs.repair.test_repair import OPERATORS, run, saved
from trueport.attention import reference
from trueport.graphs.repair import repair

TRIANGLE = np.tril(np.ones((7, 7), dtype=bool))
ADDED = ", ".join("0.0" if seen else "-10000.0" for seen in TRIANGLE.flat)
CHOSEN = ", ".join(str(int(seen)) for seen in TRIANGLE.flat)
PADDING = REAL + "p = Where (row, zero, fill)\n" + SCORES + "a = Add (scores, p)\n"
CONSTANTS = "float zero = {0.0}, float fill = {-10000.0}, int64[2] keys = {1, 2}"


@pytest.mark.parametrize("rows", ["uniform", "zeros"])
@pytest.mark.parametrize(
    ("masking", "stored"),
    [
        ("masked = Add (a, c)\n", f"float[1, 1, 7, 7] c = {{{ADDED}}}"),
        ("masked = Where (c, a, fill)\n", f"bool[1, 1, 7, 7] c = {{{CHOSEN}}}"),
    ],
    ids=["added", "chosen"],
)
def test_a_stored_causal_mask(masking: str, stored: str, rows: str, tmp_path: Path) -> None:
    text = graph(PADDING + masking + END, IDS, f"{CONSTANTS}, {stored}").replace("length", "7")
    path = saved(text, tmp_path)
    done = repair(path, tmp_path / "fixed.onnx", rows=rows)
    assert done.proof is not None and done.proof.proven
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((3, 2, 7, 4)).astype(np.float32) for _ in range(3))
    mask = rng.integers(0, 2, (3, 7))
    got = run(tmp_path / "fixed.onnx", q=q, k=k, v=v, attention_mask=mask)
    np.testing.assert_allclose(got, reference(q, k, v, mask=mask, causal=True, rows=rows, scale=1.0), atol=1e-5)


def test_an_opset_without_where_is_left(tmp_path: Path) -> None:
    """The mended graph was one that ONNX Runtime does not open."""
    text = graph(
        "r = Cast <to = 1> (attention_mask)\nrow = Unsqueeze <axes = [1, 2]> (r)\nn = Sub (one, row)\np = Mul (n, fill)\n"
        "both = Add (p, p)\n" + SCORES + "masked = Add (scores, both)\n" + END.replace("-1", "3"),
        IDS, "float one = {1.0}, float fill = {-10000.0}",
    )  # fmt: skip
    path = saved(text.replace('"" : 23', '"" : 7').replace("ir_version: 10", "ir_version: 8"), tmp_path)
    done = repair(path, tmp_path / "fixed.onnx")
    (reason,) = done.left.values()
    assert "older than 9" in reason and not done.mended


def test_the_other_name_of_onnxs_domain(tmp_path: Path) -> None:
    text = graph(PADDING + "masked = Add (a, p)\n" + END, IDS, CONSTANTS).replace('["" :', '["ai.onnx" :')
    done = repair(saved(text, tmp_path), tmp_path / "fixed.onnx")
    assert done.proof is not None and done.proof.proven and not done.left


def test_a_batch_axis_of_any_name_behind_a_past_of_two_parts(tmp_path: Path) -> None:
    """The proof took its b for a length: X had 7 rows, and the past 0."""
    path = saved(OPERATORS["past"].replace("batch", "b"), tmp_path)
    done = repair(path, tmp_path / "fixed.onnx")
    assert done.proof is not None and done.proof.proven
