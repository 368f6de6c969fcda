"""Graphs whose masks do not mean what their fills say: a mend that takes them at their word would be wrong in silence."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.graphs.audit.test_hidden_keys import IDS, REAL, operator
from tests.graphs.audit.test_rules import END, SCORES, graph
from tests.graphs.repair.test_repair import run, saved
from trueport.errors import ProofError
from trueport.graphs.repair import repair

STORED = (
    "float zero = {0.0}, float fill = {-10000.0}, float up = {10000.0}, float minus = {-1.0}, float eighth = {0.125}, "
    "int64[2] keys = {1, 2}"
)
GIVEN = f"{IDS}, bool[1, 1, length, length] global, bool[1, 1, length, length] near"
MASKS = REAL + "p = Where (row, zero, fill)\nw = Where (near, zero, fill)\nboth = Add (p, w)\n"
SUM = MASKS + SCORES + "sum = Add (scores, both)\n"


def softmax(masking: str) -> str:
    return graph(SUM + masking + END, GIVEN, STORED)


MISREAD = {
    "global tokens get it back": softmax("back = Where (global, up, zero)\nmasked = Add (sum, back)\n"),
    "global tokens get it back, in the bias": graph(
        MASKS + "back = Where (global, up, zero)\nbias = Add (both, back)\n" + SCORES
        + "masked = Add (scores, bias)\n" + END, GIVEN, STORED,
    ),
    "set to 0": softmax("others = Not (global)\nfactor = Cast <to = 1> (others)\nmasked = Mul (sum, factor)\n"),
    "turned round": softmax("masked = Mul (sum, minus)\n"),
    "one hides all, and another gives it back": softmax(
        "never = And (near, global)\nnone = Not (never)\nboth2 = And (none, never)\n"
        "x = Where (both2, zero, fill)\ny0 = Where (near, up, fill)\nm = Add (sum, x)\nmasked = Add (m, y0)\n"
    ),
    "a gate of queries": softmax("gate = Where (chosen, zero, fill)\nmasked = Add (sum, gate)\n").replace(
        "bool[1, 1, length, length] global", "bool[batch, 1, length, 1] chosen"
    ),
    "a gate of heads": softmax("gate = Where (chosen, zero, fill)\nmasked = Add (sum, gate)\n").replace(
        "bool[1, 1, length, length] global", "bool[1, 2, 1, 1] chosen"
    ),
    "a gate of rows, in all axes": softmax(
        "size = Shape (w)\ngate0 = Where (chosen, zero, fill)\ngate = Expand (gate0, size)\nmasked = Add (sum, gate)\n"
    ).replace("bool[1, 1, length, length] global", "bool[batch, 1, 1, 1] chosen"),
    "an operator's bias": operator(
        MASKS + "back = Where (global, up, zero)\nbias = Add (both, back)\n"
        'y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, "", "", bias)', GIVEN,
    ).replace("float eps", "float up = {10000.0}, float eps"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISREAD)
def test_a_mask_that_is_taken_back_is_not_enforced(name: str, tmp_path: Path) -> None:
    """Of a window that global tokens are let out of, the sum shows keys that one of its terms hides."""
    path = saved(MISREAD[name], tmp_path)
    with pytest.raises(ProofError, match="seem to hide, the graph shows"):
        repair(path, tmp_path / "fixed.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["graph.onnx"]


def test_queries_of_padding_are_no_gate(tmp_path: Path) -> None:
    """A mask (queries, keys) of the padding mask alone: what its padding attends, the policy says."""
    body = (
        "real = Cast <to = 1> (attention_mask)\ncolumn = Unsqueeze (real, queries)\nrow = Unsqueeze (real, keys)\n"
        "both = Mul (column, row)\nyes = Cast <to = 9> (both)\np = Where (yes, zero, fill)\nw = Where (near, zero, fill)\n"
        + SCORES + "one = Add (scores, p)\nmasked = Add (one, w)\n" + END
    )  # fmt: skip
    stored = STORED.replace("int64[2] keys", "int64[2] queries = {1, 3}, int64[2] keys")
    path = saved(graph(body, GIVEN.replace("bool[1, 1, length, length] global, ", ""), stored), tmp_path)
    done = repair(path, tmp_path / "fixed.onnx")
    assert done.proof is not None and done.proof.proven and done.mended and not done.left


def test_a_sum_that_is_scaled_is_mended(tmp_path: Path) -> None:
    """As BERT of some exporters: scores and masks are divided together."""
    path = saved(softmax("masked = Mul (sum, eighth)\n"), tmp_path)
    done = repair(path, tmp_path / "fixed.onnx")
    assert done.proof is not None and done.proof.proven and done.mended
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 2, 7, 4)).astype(np.float32) for name in "qkv"}
    feeds["attention_mask"] = np.array([[0, 1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    feeds["global"] = np.zeros((1, 1, 7, 7), dtype=bool)
    feeds["near"] = np.abs(np.arange(7)[:, None] - np.arange(7))[None, None] <= 2
    np.testing.assert_allclose(run(tmp_path / "fixed.onnx", **feeds), run(path, **feeds), atol=1e-6)


@pytest.mark.parametrize("rows", ["uniform", "zeros"])
def test_other_layers_are_mended(rows: str, tmp_path: Path) -> None:
    """A layer whose global tokens are let out of a window kept all others from being mended."""
    first = SUM + "back = Where (global, up, zero)\nmasked = Add (sum, back)\n" + END.replace("y = ", "h = ")
    second = (
        "ht = Transpose <perm = [0, 1, 3, 2]> (h)\nscores2 = MatMul (q, ht)\nsum2 = Add (scores2, both)\n"
        "weights2 = Softmax <axis = -1> (sum2)\ny = MatMul (weights2, h)\n"
    )
    path = saved(graph(first + second, GIVEN, STORED), tmp_path)
    done = repair(path, tmp_path / "fixed.onnx", rows=rows)
    assert done.proof is not None and done.proof.proven and [layer.node for layer in done.proof.layers] == ["weights2"]
    assert [finding.node for finding in done.mended] == ["weights2"]
    assert list(done.left) == ["weights"] and "takes it back" in done.left["weights"]
    assert "left weights: the graph shows what its masks seem to hide" in done.text()
    assert done.after is not None and [finding.node for finding in done.after.errors] == ["weights"]
    rng = np.random.default_rng(0)
    feeds = {name: rng.standard_normal((2, 2, 7, 4)).astype(np.float32) for name in "qkv"}
    feeds["attention_mask"] = np.array([[0, 1, 1, 1, 0, 1, 1], [1, 1, 1, 1, 1, 1, 0]])
    feeds["global"] = np.eye(7, dtype=bool)[None, None]
    feeds["near"] = np.abs(np.arange(7)[:, None] - np.arange(7))[None, None] <= 2
    np.testing.assert_allclose(run(tmp_path / "fixed.onnx", **feeds), run(path, **feeds), atol=1e-5)


def test_an_operator_beside_others_is_left(tmp_path: Path) -> None:
    """Its node has no name: it goes by what it gives."""
    call = 'com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, "", "", %s)\n'
    text = operator(
        MASKS + "back = Where (global, up, zero)\nbias = Add (both, back)\nh = " + call % "bias" + "g = " + call % "both"
        + "y = Add (h, g)\n", GIVEN,
    ).replace("float eps", "float up = {10000.0}, float eps")  # fmt: skip
    done = repair(saved(text, tmp_path), tmp_path / "fixed.onnx")
    assert list(done.left) == ["h"] and [finding.node for finding in done.mended] == ["g"]
    assert done.proof is not None and done.proof.proven
