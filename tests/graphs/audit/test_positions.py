"""Positions that count padding: wrong where they are added to tokens, right where only their distances are read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.graphs.audit.test_rules import HEAD, audited

TABLE = ", ".join(str(0.25 * number) for number in range(32))
HALF = ", ".join(str(0.25 * number) for number in range(16))
COUNTED = (
    "size = Shape <start = 1, end = 2> (attention_mask)\nlength = Squeeze (size)\nplaces = Range (zero, length, one)\n"
)
ANGLES = (
    "f = Cast <to = 1> (places)\ncolumn = Unsqueeze (f, last)\nangles = Mul (column, speeds)\ncos = Cos (angles)\n"
    "sin = Sin (angles)\n"
)
TURNED = (
    "qc = Mul (x, cos)\nq2 = Gather <axis = 2> (x, turned)\nqs = Mul (q2, sin)\nq = Add (qc, qs)\n"
    "kc = Mul (x, cos)\nk2 = Gather <axis = 2> (x, turned)\nks = Mul (k2, sin)\nk = Add (kc, ks)\nn = Identity (x)\n"
)
PLAIN = "q = Identity (n)\nk = Identity (n)\n"


def causal(body: str) -> str:
    """A causal layer over x (batch, length, 4), of queries q and keys k; the values are n."""
    return (
        f"{HEAD}g (float[batch, length, 4] x, bool[batch, length] attention_mask)\n=> (float[batch, length, 4] y)\n"
        f"<int64 zero = {{0}}, int64 one = {{1}}, int64[1] last = {{1}}, int64[1] first = {{0}}, int64[1] rest = {{1}},\n"
        "float[1, 4] speeds = {1.0, 0.1, 1.0, 0.1}, int64[4] turned = {2, 3, 0, 1}, float two = {2.0},\n"
        f"float[8, 4] table = {{{TABLE}}}, float[8, 2] cosines = {{{HALF}}}, int64[2] keys = {{1, 2}}>\n"
        f"{{\nrow = Unsqueeze (attention_mask, keys)\n{body}"
        "y = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, k, n, row)\n}"
    )


DISTANCES = {
    "angles": COUNTED + ANGLES + TURNED,
    "angles that are scaled": (
        COUNTED + ANGLES.replace("cos = Cos (angles)", "c = Cos (angles)\ncos = Mul (c, two)") + TURNED
    ),
    "stored cosines, gathered": COUNTED + "cos = Gather (table, places)\nsin = Gather (table, places)\n" + TURNED,
    "stored cosines, cut": (
        "size = Shape <start = 1, end = 2> (attention_mask)\ncos = Slice (table, first, size, first)\n"
        "sin = Slice (table, first, size, first)\n" + TURNED
    ),
    "an operator's": (
        COUNTED + "both = Unsqueeze (places, first)\nids = Expand (both, shape)\n"
        "q = com.microsoft.RotaryEmbedding <num_heads = 1> (x, ids, cosines, cosines)\n"
        "k = com.microsoft.RotaryEmbedding <num_heads = 1> (x, ids, cosines, cosines)\nn = Identity (x)\n"
    ).replace("both =", "shape = Shape <start = 0, end = 2> (x)\nboth ="),
}  # fmt: skip


@pytest.mark.parametrize("name", DISTANCES)
def test_rotary_positions_may_count_padding(name: str, tmp_path: Path) -> None:
    """Every plain export of Llama was warned of, and is right under left padding: its angles only tell distances."""
    report = audited(causal(DISTANCES[name]), tmp_path)
    assert report.findings == () and report.attentions == 1, report.text()


PLACES = {
    "a table, gathered": COUNTED + "p = Gather (table, places)\nn = Add (x, p)\n" + PLAIN,
    "a table, cut": (
        "size = Shape <start = 1, end = 2> (attention_mask)\np = Slice (table, first, size, first)\nn = Add (x, p)\n" + PLAIN
    ),
    "a table, scaled": COUNTED + "p0 = Gather (table, places)\np = Mul (p0, two)\nn = Add (p, x)\n" + PLAIN,
    "angles": COUNTED + ANGLES + "p = Add (sin, cos)\nn = Add (x, p)\n" + PLAIN,
    "angles beside each other": (
        COUNTED + ANGLES + "both = Concat <axis = 1> (sin, cos)\np = Slice (both, first, four, rest)\nn = Add (x, p)\n"
        + PLAIN
    ).replace("both = C", "four = Constant <value_ints = [4]> ()\nboth = C"),
}  # fmt: skip


@pytest.mark.parametrize("name", PLACES)
def test_positions_that_are_added_may_not(name: str, tmp_path: Path) -> None:
    report = audited(causal(PLACES[name]), tmp_path)
    assert {(finding.rule, finding.severity) for finding in report.findings} == {("positions-ignore-mask", "warning")}


EMBEDDED = (
    '<ir_version: 10, opset_import: ["" : 17, "com.microsoft" : 1]>\n'
    "g (int32[batch, length] input_ids, int32[batch, length] attention_mask%s) => (float[batch, length, 4] y)\n"
    f"<float[8, 4] words = {{{TABLE}}}, float[8, 4] places = {{{TABLE}}}, float[4] one = {{1.0, 1.0, 1.0, 1.0}}, "
    f"float[4] none = {{0.0, 0.0, 0.0, 0.0}}, float[4, 12] w = {{{', '.join(['0.1'] * 48)}}}, "
    f"float[12] b = {{{', '.join(['0.0'] * 12)}}}>\n"
    '{\nx = com.microsoft.EmbedLayerNormalization (input_ids, "", words, places, "", one, none%s)\n'
    "y = com.microsoft.Attention <num_heads = 2, unidirectional = 1, mask_filter_value = -inf> (x, w, b, attention_mask)\n}"
)


def test_an_operator_that_counts_is_found(tmp_path: Path) -> None:
    """onnxruntime's optimizer folds GPT-2's table into an operator, which counts where no places are given."""
    counts = audited(EMBEDDED % ("", ""), tmp_path)
    assert [finding.severity for finding in counts.of("positions-ignore-mask")] == ["warning"]
    given = audited(EMBEDDED % (", int32[batch, length] position_ids", ', "", position_ids'), tmp_path)
    assert not given.of("positions-ignore-mask")


def test_an_encoder_beside_a_decoder_counts_on_purpose(tmp_path: Path) -> None:
    """Of BART in one graph both tables were warned of: its encoder's own, and its decoder's, whose tokens have no mask."""
    body = COUNTED + (
        "p = Gather (table, places)\nn = Add (x, p)\n"
        "e = Attention <q_num_heads = 2, kv_num_heads = 2> (n, n, n, row)\nq = Add (x, p)\nk = Identity (e)\n"
        "d = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (q, q, q)\n"
        "y = Attention <q_num_heads = 2, kv_num_heads = 2> (d, e, e, row)\n}"
    )
    assert not audited(causal(body).rpartition("y = ")[0], tmp_path).of("positions-ignore-mask")
