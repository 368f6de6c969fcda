"""Heads: beside rows or queries on one axis, some of them without a mask, and of the operator that groups them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tests.graphs.audit.test_hidden_keys import IDS, REAL, STORED, operator, plain
from tests.graphs.audit.test_rules import END, HEAD, OUT, QKV, SCORES, audited

FOLDED = (
    f"{HEAD}g (float[batch, length, 8] x, {IDS}) => (float[rows, length, 4] y)\n"
    f"<{STORED}, int64[4] apart = {{0, 0, 2, 4}}, int64[1] four = {{4}}, int64[1] rest = {{-1}}, int64[2] twice = {{2, 1}}, "
    "int64[1] two64 = {2}, float half = {0.5}, int64[3] wide = {1, 2, 1}>\n{\nlength = Shape <start = 1, end = 2> (x)\n%s"
    "m = Unsqueeze (tall, i2)\nreal = Cast <to = 9> (m)\nkt = Transpose <perm = [0, 2, 1]> (h)\nscores = MatMul (h, kt)\n"
    "masked = Where (real, scores, low)\nw = Softmax <axis = -1> (masked)\ny = MatMul (w, h)\n}"
)
"""Rows and heads on one axis, and a mask for each."""
TIME_FIRST = (
    "turned0 = Transpose <perm = [1, 0, 2]> (x)\nrows = Shape <start = 0, end = 1> (x)\ntwofold = Mul (rows, two64)\n"
    "real_number = Cast <to = 1> (twofold)\nwhole = Floor (real_number)\nboth = Cast <to = 7> (whole)\n"
    "three = Concat <axis = 0> (length, both, four)\nh0 = Reshape (turned0, three)\nh1 = Transpose <perm = [1, 0, 2]> (h0)\n"
    "h = Mul (h1, half)\nsize = Shape <start = 1, end = 2> (h1)\ncolumn = Unsqueeze (attention_mask, i2)\n"
    "pair = Expand (column, wide)\nlines = Concat <axis = 0> (both, size)\ntall = Reshape (pair, lines)\n"
)
"""As torch.nn.MultiheadAttention has it: sizes are those behind a Reshape to what is computed."""
ROWS_FIRST = (
    "heads = Reshape (x, apart)\nturned = Transpose <perm = [0, 2, 1, 3]> (heads)\n"
    "three = Concat <axis = 0> (rest, length, four)\nh = Reshape (turned, three)\n"
)
HEADS_FIRST = "a, b = Split <axis = 2, num_outputs = 2> (x)\nh = Concat <axis = 0> (a, b)\n"
BY_ROWS = (
    "column = Unsqueeze (attention_mask, i2)\npair = Expand (column, wide)\ntwo = Concat <axis = 0> (rest, length)\n"
    "tall = Reshape (pair, two)\n"
)
BY_HEADS = "tall = Tile (attention_mask, twice)\n"
ONE_KEY_HEAD = (
    f"{HEAD}g (float[batch, length, 2, 4] q, float[batch, length, 4] k, float[batch, length, 4] v, {IDS}, "
    f"bool[1, length, length] causal) => (float[batch, rows, 4] y)\n<{STORED}, int64[3] flat = {{0, -1, 4}}, "
    "int64[1] two = {2}, int64[4] heads = {1, 1, 2, 1}>\n{\nreal = Cast <to = 9> (attention_mask)\n"
    "row = Unsqueeze (real, i2)\nboth = And (row, causal)\nseen = Unsqueeze (both, two)\nqf = Reshape (q, flat)\n"
    "kt = Transpose <perm = [0, 2, 1]> (k)\nscores = MatMul (qf, kt)\nsize = Shape (scores)\n%s}"
)
"""Causal; queries, and heads behind them, share the axis of the scores: one head of keys, as in GPTBigCode."""
GROUPED = operator(
    REAL + "size = Shape (attention_mask)\nrows, length = Split <axis = 0, num_outputs = 2> (size)\n"
    "whole = Squeeze (length)\ntotal = Cast <to = 6> (whole)\nshape = Concat <axis = 0> (i2, i2, length, i2)\n"
    "row_bias = Where (row, zero, low)\nbias = Expand (row_bias, shape)\n%s\nless = Sub (counts, i2)\n"
    "lengths = Cast <to = 6> (less)\n"
    "y = com.microsoft.GroupQueryAttention <num_heads = 2, kv_num_heads = 2> "
    '(q, k, v, "", "", lengths, total, "", "", "", bias)'
).replace(", 4]", ", 16]")
"""A bias made of the mask, and lengths for each row."""
STANDARD = (
    f"{HEAD.replace('23', '24')}g ({QKV}, {IDS}) {OUT}\n<{STORED}>\n{{\n{REAL}"
    "sums = ReduceSum <keepdims = 0> (attention_mask, i2)\n"
    'y = Attention (q, k, v, %s, "", "", sums)\n}'
)
WRONG = {
    "the mask's sums beside a bias": (
        "right-padding-only", "error", GROUPED % "counts = ReduceSum <keepdims = 0> (attention_mask, i2)",
    ),
    "the mask's sums as nonpad_kv_seqlen": ("right-padding-only", "error", STANDARD % '""'),
    "the mask's sums as nonpad_kv_seqlen, beside the mask": ("right-padding-only", "error", STANDARD % "row"),
    "a length among computed sizes": (
        "baked-length", "error",
        FOLDED.replace("int64[1] four", "int64[1] sample = {16}, int64[1] four") % TIME_FIRST.replace(
            "(length, both, four)", "(sample, both, four)"),
    ),
    "sizes behind a Reshape, inverted": (
        "inverted-mask", "error", FOLDED.replace("(real, scores, low)", "(real, low, scores)") % TIME_FIRST,
    ),
    "all heads of a row, and all rows' masks": ("leaking-mask", "error", FOLDED % (ROWS_FIRST + BY_HEADS)),
    "all rows of a head, and a row's mask for each": ("leaking-mask", "error", FOLDED % (HEADS_FIRST + BY_ROWS)),
    "one head of two": (
        "leaking-mask", "error",
        plain(REAL + SCORES + "one_head, other = Split <axis = 1, num_outputs = 2> (scores)\n"
              "m = Where (row, one_head, low)\nmasked = Concat <axis = 1> (m, other)\n" + END),
    ),
}  # fmt: skip
RIGHT = {
    "the last token's place beside a bias": (
        GROUPED % "x = Range (zero64, whole, one64)\nplaces = Add (x, i2)\nkept = Mul (attention_mask, places)\n"
        "counts = ReduceMax <keepdims = 0> (kept, i2)"
    ).replace("bool yes", "int64 zero64 = {0}, int64 one64 = {1}, bool yes"),
    "the batch's length beside a bias": GROUPED % "counts = Expand (length, rows)",
    "sizes behind a Reshape": FOLDED % TIME_FIRST,
    "all heads of a row, and its mask for each": FOLDED % (ROWS_FIRST + BY_ROWS),
    "all rows of a head, and their masks": FOLDED % (HEADS_FIRST + BY_HEADS),
    "one head of keys, its scores apart": ONE_KEY_HEAD % (
        "len = Shape <start = 1, end = 2> (k)\nfour = Concat <axis = 0> (i1, len, two, len)\n"
        "apart = Reshape (scores, four)\nmasked = Where (seen, apart, low)\nw = Softmax <axis = -1> (masked)\n"
        "weights = Reshape (w, size)\ny = MatMul (weights, v)\n"
    ),
    "one head of keys, its mask folded": ONE_KEY_HEAD % (
        "wide = Expand (seen, heads)\nfolded = Reshape (wide, size)\nmasked = Where (folded, scores, low)\n" + END
    ),
    "one head, then the other": plain(
        REAL + SCORES + "one_head, other = Split <axis = 1, num_outputs = 2> (scores)\n"
        "m = Where (row, one_head, low)\nn = Where (row, other, low)\nmasked = Concat <axis = 1> (m, n)\n" + END
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_heads_are_found(name: str, tmp_path: Path) -> None:
    rule, severity, text = WRONG[name]
    report = audited(text, tmp_path)
    assert {(finding.rule, finding.severity) for finding in report.findings} == {(rule, severity)}, report.text()


def test_what_lengths_need_instead_is_said(tmp_path: Path) -> None:
    (finding,) = audited(STANDARD % '""', tmp_path).findings
    assert "attn_mask" in finding.mend and not finding.repairable


@pytest.mark.parametrize("name", RIGHT)
def test_right_heads_are_not(name: str, tmp_path: Path) -> None:
    report = audited(RIGHT[name], tmp_path)
    assert report.findings == () and report.unjudged == 0, report.text()


@pytest.mark.parametrize("name", ["the mask's sums beside a bias", "the batch's length beside a bias"])
def test_left_padding_of_grouped_heads(name: str, tmp_path: Path) -> None:
    """The runtime agrees: a left-padded row is what it is alone, behind the batch's length alone."""
    right = name in RIGHT
    onnx.save(onnx.parser.parse_model(RIGHT[name] if right else WRONG[name][2]), tmp_path / "graph.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "graph.onnx")
    q, k, v = np.random.default_rng(0).standard_normal((3, 2, 7, 16)).astype(np.float32)
    mask = np.array([[1] * 7, [0, 0, 1, 1, 1, 1, 1]])
    whole = session.run(None, {"q": q, "k": k, "v": v, "attention_mask": mask})[0][1, 2:]
    alone = session.run(None, {"q": q[1:, 2:], "k": k[1:, 2:], "v": v[1:, 2:], "attention_mask": mask[1:, 2:]})[0][0]
    assert (np.abs(whole - alone).max() < 1e-5) == right
