"""Odd graphs: other names, axes, layouts, loops and numbers; how certain a finding is, and what is not known."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.graphs.audit.test_hidden_keys import ADDED, CHOSEN, FLOATS, IDS, REAL, RIGHT, STORED, WRONG, operator, plain
from tests.graphs.audit.test_rules import CAUSAL, END, HEAD, OUT, QKV, SCORES, audited
from trueport.graphs.audit import Report, audit


def changed(text: str, change: Callable[[onnx.ModelProto], None], folder: Path) -> Report:
    """The report on a graph that is changed before."""
    model = onnx.parser.parse_model(text)
    change(model)
    onnx.save(model, folder / "graph.onnx")
    return audit(folder / "graph.onnx")


@pytest.mark.parametrize(
    ("name", "severity"),
    [
        ("attention_mask:0", "error"),
        ("model/attention_mask.1", "error"),
        ("decoder_attention_mask", "error"),
        ("attentionMask", "error"),
        ("input_mask:0", "warning"),
        ("src_key_padding_mask", "warning"),
    ],
)
def test_masks_by_other_names(name: str, severity: str, tmp_path: Path) -> None:
    """TensorFlow's, PyTorch's and JavaScript's."""

    def rename(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            value.name = name if value.name == "attention_mask" else value.name
        for node in model.graph.node:
            node.input[:] = [name if given == "attention_mask" else given for given in node.input]

    report = changed(WRONG["joined by or"][1], rename, tmp_path)
    assert [(finding.rule, finding.severity) for finding in report.findings] == [("leaking-mask", severity)]


@pytest.mark.parametrize("named", [False, True, -1])
@pytest.mark.parametrize(("graph_", "rules"), [(WRONG["inverted"][1], ["inverted-mask"]), (RIGHT["chosen"], [])])
def test_axes_without_a_name_or_with_one_each(named: int, graph_: str, rules: list[str], tmp_path: Path) -> None:
    """Or with the size -1, which ONNX Runtime takes for any."""

    def rename(model: onnx.ModelProto) -> None:
        for place, value in enumerate(model.graph.input):
            for number, axis in enumerate(value.type.tensor_type.shape.dim):
                if axis.dim_param and named < 0:
                    axis.dim_value = named
                elif axis.dim_param and named:
                    axis.dim_param = f"axis_{place}_{number}"
                elif axis.dim_param:
                    axis.Clear()

    assert [finding.rule for finding in changed(graph_, rename, tmp_path).findings] == rules


def test_a_mask_without_declared_axes_is_not_judged(tmp_path: Path) -> None:
    def forget(model: onnx.ModelProto) -> None:
        for value in model.graph.input:
            if value.name == "attention_mask":
                value.type.tensor_type.ClearField("shape")

    report = changed(WRONG["inverted"][1], forget, tmp_path)
    assert report.findings == () and report.unjudged == 1
    assert "whether padding alone is hidden in 1 layer is not known" in report.text()


ROW_BY_ROW = (
    "y = Scan (q, k, v, row) <num_scan_inputs = 4, body = b (float[2, length, 4] qq, float[2, length, 4] kk, "
    "float[2, length, 4] vv, bool[1, 1, length] m) => (float[2, length, 4] yy) {{\n"
    "kt = Transpose <perm = [0, 2, 1]> (kk)\nscores = MatMul (qq, kt)\nmasked = Where ({})\n"
    "weights = Softmax <axis = -1> (masked)\nyy = MatMul (weights, vv)\n}}>\n"
)
LAYERS = (
    "y = Scan (k, masks) <num_scan_inputs = 1, body = b (float[batch, 2, length, 4] h, bool[batch, 1, 1, length] m) => "
    "(float[batch, 2, length, 4] ho) {\nkt = Transpose <perm = [0, 1, 3, 2]> (h)\nscores = MatMul (q, kt)\n"
    "masked = Where (m, scores, low)\nweights = Softmax <axis = -1> (masked)\nho = MatMul (weights, v)\n}>\n"
)
MADE_BY_ROWS = (
    "rows = Scan (attention_mask) <num_scan_inputs = 1, body = b (int64[length] m) => (bool[length] o) {\n"
    "r = Cast <to = 9> (m)\no = %s (r)\n}>\nseen = Unsqueeze (rows, keys)\n"
)
STEP = (
    f"{HEAD}g (int64[batch, 1] input_ids, int64[batch, total] attention_mask, float[batch, 2, 1, 4] q, "
    "float[batch, 2, 1, 4] new, float[batch, 2, past, 4] past_k)\n=> (float[batch, 2, 1, 4] y, float[batch, 2, all, 4] k)\n"
    f"<{STORED}>\n{{\n{REAL}k = Concat <axis = 2> (past_k, new)\nsize = Shape <start = 2, end = 3> (k)\n"
    "seen = Slice (row, i1, size, last)\n" + CHOSEN.replace("(weights, v)", "(weights, k)") + "}"
)
CROSS = (
    f"{HEAD}g (int64[rows, source] attention_mask, int64[batch, 1] decoder_input_ids, float[batch, 2, 1, 4] q, "
    "float[batch, 2, source, 4] cross_past_k)\n=> (float[batch, 2, 1, 4] y)\n"
    f"<{STORED}>\n{{\n{REAL}" + CHOSEN.replace("(k)", "(cross_past_k)").replace("(weights, v)", "(weights, cross_past_k)")
    + "}"
)  # fmt: skip
ONE_PAST = (
    f"{HEAD}g ({QKV}, int64[batch, total] attention_mask, float[batch, 2, %s, 4] past_k)\n"
    f"=> (float[batch, 2, length, 4] y, float[batch, 2, all, 4] keys0)\n<{STORED}>\n{{\n{REAL}"
    "keys0 = Concat <axis = 2> (past_k, k)\n" + CHOSEN.replace("(k)", "(keys0)").replace("(weights, v)", "(weights, keys0)")
    + "}"
).replace("seen, scores", "row, scores")  # fmt: skip
UNKNOWN = {
    "an operator that no score goes through": plain(
        REAL + SCORES + "s = Erf (scores)\nmasked = Where (row, s, low)\n" + END
    ),
    "masked scores in eight bits": plain(
        REAL + SCORES + "m = Where (row, scores, low)\nsmall = QuantizeLinear (m, step)\n"
        "masked = DequantizeLinear (small, step)\n" + END
    ).replace("bool yes", "float step = {0.1}, bool yes"),
    "one of two scores": plain(
        REAL + SCORES + "double = Add (scores, scores)\ns = Where (causal, scores, double)\nmasked = Where (row, s, low)\n"
        + END, f"{IDS}, {CAUSAL}",
    ),
    "a bias inside the softmax": plain(
        REAL + "bias = Where (row, low, zero)\n" + SCORES
        + "weights = com.microsoft.BiasSoftmax <axis = 3, is_inner_broadcast = 0> (scores, bias)\ny = MatMul (weights, v)\n"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_said(name: str, tmp_path: Path) -> None:
    report = audited(UNKNOWN[name], tmp_path)
    assert report.findings == () and report.unjudged == 1 and report.to_json()["unjudged"] == 1


QUANTISED = (
    "q8, qs, qz = DynamicQuantizeLinear (q)\nkt = Transpose <perm = [0, 1, 3, 2]> (k)\n"
    "k8, ks, kz = DynamicQuantizeLinear (kt)\nwhole = MatMulInteger (q8, k8, qz, kz)\nf = Cast <to = 1> (whole)\n"
    "scale = Mul (qs, ks)\nscores = Mul (f, scale)\n"
)
IN_PLACE = (
    f"{HEAD}g ({QKV}, int64[batch, total_length] attention_mask, float[batch, 2, cache_capacity, 4] past_key_values)\n"
    f"=> (float[batch, 2, length, 4] y)\n<{STORED}>\n{{\n{REAL}room = Shape <start = 2, end = 3> (past_key_values)\n"
    "size = Shape <start = 3, end = 4> (row)\nfree = Sub (room, size)\npads = Concat <axis = 0> (none, free)\n"
    "seen = Pad (row, pads)\nkt = Transpose <perm = [0, 1, 3, 2]> (past_key_values)\nscores = MatMul (q, kt)\n"
    "masked = Where (seen, scores, low)\nweights = Softmax <axis = -1> (masked)\ny = MatMul (weights, past_key_values)\n}"
).replace("bool yes", "int64[7] none = {0, 0, 0, 0, 0, 0, 0}, bool yes")
CACHED = (
    (
        f"{HEAD}g ({QKV}, int64[batch, total_length] attention_mask, float[batch, 2, past_length, 4] past_k)\n{OUT}\n"
        f"<{STORED}, int64 i1s = {{1}}>\n{{\n{REAL}all = Concat <axis = 2> (past_k, k)\n"
        "to = Shape <start = 2, end = 3> (all)\n"
        "news = Shape <start = 2, end = 3> (q)\nold = Sub (to, news)\nkeys = Squeeze (to)\nq0 = Squeeze (%s)\n"
        "new = Squeeze (news)\n"
        "behind = Add (q0, new)\nj = Range (i0, keys, i1s)\ni = Range (q0, behind, i1s)\ncolumn = Unsqueeze (i, i2)\n"
        "before = LessOrEqual (j, column)\nseen = And (row, before)\nkt = Transpose <perm = [0, 1, 3, 2]> (all)\n"
        "scores = MatMul (q, kt)\nmasked = Where (seen, scores, low)\nw = Softmax <axis = -1> (masked)\n"
        "y = MatMul (w, all)\n}"
    )
    .replace("keys = Sq", "count = Sq")
    .replace("(i0, keys,", "(i0, count,")
)
COUNTED = operator(
    REAL + "size = Shape (attention_mask)\nlength = Shape <start = 1, end = 2> (attention_mask)\n%s"
    "turned = Gather <axis = 0> (table, places)\nn = Add (q, turned)\n"
    "y = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1> (n, k, v, row)\n"
).replace(
    "bool yes",
    f"float[16, 4] table = {{{', '.join(f'{0.25 * number}' for number in range(64))}}}, int64 one64 = {{1}}, "
    f"int64[1, 16] row_of_places = {{{', '.join(map(str, range(16)))}}}, "
    "bool yes",
)
"""A causal layer whose queries are told their places."""
MORE_WRONG = {
    "places are a stored row, cut": (
        "positions-ignore-mask", "warning", COUNTED % "places = Slice (row_of_places, i1, length, i2)\n",
    ),
    "places are the sums of ones": (
        "positions-ignore-mask", "warning",
        COUNTED % ("some = ConstantOfShape <value = int64[1] {1}> (size)\nsums = CumSum (some, one64)\n"
                   "places = Sub (sums, one64)\n"),
    ),
    "infinite, times one": (
        "nan-rows", "error",
        plain(REAL + "f = Where (row, zero, inf)\nbias = Mul (f, one)\n" + ADDED
              ).replace("bool yes", "float inf = {-inf}, bool yes"),
    ),
    "a source's keys, inverted": ("inverted-mask", "error", CROSS.replace("(seen, scores, low)", "(row, low, scores)")),
    "a past of one token": ("baked-length", "error", ONE_PAST % "1"),
    "a causal mask that forgets the past": ("leaking-mask", "error", CACHED % "i1"),
    "others than itself": (
        "misplaced-causal", "warning",
        plain(REAL + "other = Not (itself)\nseen = And (row, other)\n" + CHOSEN)
        .replace("other = Not (itself)", "size = Shape <start = 1, end = 2> (attention_mask)\ncount = Squeeze (size)\n"
                 "places = Range (i0, count, one64)\ncolumn = Unsqueeze (places, i2)\nsame = Equal (places, column)\n"
                 "other = Not (same)").replace("bool yes", "int64 one64 = {1}, bool yes"),
    ),
    "the future alone": (
        "misplaced-causal", "warning",
        plain(REAL + "turned = Transpose <perm = [0, 1, 3, 2]> (causal)\nseen = And (row, turned)\n" + CHOSEN,
              f"{IDS}, {CAUSAL}"),
    ),
    "inverted, caches in place": (
        "inverted-mask", "error", IN_PLACE.replace("(seen, scores, low)", "(seen, low, scores)"),
    ),
    "inverted, scores of integers": (
        "inverted-mask", "error", plain(REAL + "n = Not (row)\n" + QUANTISED + "masked = Where (n, scores, low)\n" + END),
    ),
    "the first row's, in a branch": (
        "first-row-mask", "error",
        plain(REAL + "first = Gather <axis = 0> (row, i1)\ny = If (flag) <" + ", ".join(
            f"{name}_branch = {name} () => (float[batch, 2, length, 4] {name}y) {{\n"
            + SCORES.replace("kt", f"{name}t").replace("scores", f"{name}s")
            + f"{name}m = Where (first, {name}s, low)\n{name}w = Softmax <axis = -1> ({name}m)\n"
            f"{name}y = MatMul ({name}w, v)\n}}" for name in ("then", "else")) + ">\n", f"{IDS}, bool flag"),
    ),
    "inverted, one of many summands": (
        "inverted-mask", "error",
        plain(REAL + "bias = Where (row, fill, zero)\n" + SCORES + "masked = Sum (bias, scores, scores)\n" + END),
    ),
    "inverted, before what is taken off": (
        "inverted-mask", "error",
        plain(REAL + "bias = Where (row, fill, zero)\n" + SCORES + "n = Neg (scores)\nmasked = Sub (bias, n)\n" + END),
    ),
    "inverted, for single steps": (
        "inverted-mask", "error", STEP.replace("(seen, scores, low)", "(seen, low, scores)"),
    ),
    "inverted, row by row": ("inverted-mask", "error", plain(REAL + ROW_BY_ROW.format("m, low, scores"))),
    "inverted, a mask for each layer": (
        "inverted-mask", "error",
        plain(REAL + "n = Not (row)\none5 = Unsqueeze (n, i1)\nmasks = Concat <axis = 0> (one5, one5)\n" + LAYERS),
    ),
    "inverted, made row by row": ("inverted-mask", "error", plain(MADE_BY_ROWS % "Not" + CHOSEN)),
    "inverted, heads in the batch": (
        "inverted-mask", "error", RIGHT["heads in the batch"].replace("(flat, scores, low)", "(flat, low, scores)"),
    ),
    "inverted, yes and no": (
        "inverted-mask", "warning",
        plain("row = Unsqueeze (attention_mask, keys)\nseen = Not (row)\n" + CHOSEN, "bool[batch, length] attention_mask"),
    ),
    "inverted, floats": (
        "inverted-mask", "warning", plain(REAL + "seen = Not (row)\n" + CHOSEN, "float[batch, length] attention_mask"),
    ),
    "transposed, with queries of its own": (
        "query-axis-mask", "warning",
        plain("real = Cast <to = 9> (attention_mask)\nt = Transpose <perm = [0, 2, 1]> (real)\nseen = Unsqueeze (t, i2)\n"
              + CHOSEN, "int64[batch, length, length] attention_mask"),
    ),
    "positions alone": (
        "leaking-mask", "warning",
        plain("counted = CumSum (attention_mask, one64)\nf = Cast <to = 1> (counted)\nrow = Unsqueeze (f, queries)\n"
              "angle = Cos (row)\nturned = Mul (q, angle)\n" + SCORES.replace("(q,", "(turned,")
              + "masked = Identity (scores)\n" + END).replace("bool yes", "int64 one64 = {1}, bool yes"),
    ),
    "a bias of the mask's positions alone": (
        "leaking-mask", "error",
        plain(FLOATS + "bias = CumSum (ones, three)\n" + ADDED).replace("bool yes", "int64 three = {3}, bool yes"),
    ),
    "one head's": (
        "leaking-mask", "error",
        plain(REAL + SCORES + "m = Where (row, scores, low)\na = Slice (m, i1, i2, i2)\nb = Slice (scores, i2, end, i2)\n"
              "masked = Concat <axis = 1> (a, b)\n" + END).replace("bool yes", "int64[1] end = {2}, bool yes"),
    ),
    "one query's": (
        "leaking-mask", "error",
        plain(REAL + SCORES + "m = Where (row, scores, low)\na = Slice (m, i1, i2, axis)\n"
              "size = Shape <start = 2, end = 3> (q)\nb = Slice (scores, i2, size, axis)\n"
              "masked = Concat <axis = 2> (a, b)\n" + END).replace("bool yes", "int64[1] axis = {2}, bool yes"),
    ),
    "the logarithm of what is never 0": (
        "leaking-mask", "error", plain(FLOATS + "s = Sigmoid (ones)\nbias = Log (s)\n" + ADDED),
    ),
    "too little to hide": (
        "leaking-mask", "error",
        plain(REAL + "bias = Where (row, zero, tiny)\n" + ADDED).replace("bool yes", "float tiny = {-5.0}, bool yes"),
    ),
    "a fill of the wrong sign": (
        "leaking-mask", "error", plain(REAL + SCORES + "masked = Where (row, scores, eps)\n" + END),
    ),
    "zeros in the place of hidden scores": (
        "leaking-mask", "error", plain(REAL + SCORES + "n = Not (row)\nmasked = Where (n, zero, scores)\n" + END),
    ),
    "infinite, and a guard before that": (
        "nan-rows", "error",
        plain(REAL + SCORES + "near = Where (causal, scores, zero)\nmasked = Where (row, near, inf)\n" + END,
              f"{IDS}, {CAUSAL}").replace("bool yes", "float inf = {-inf}, bool yes"),
    ),
    "moved by one key": (
        "leaking-mask", "error",
        plain(REAL + "a = Slice (row, i1, end, last)\nb = Slice (row, i1, i2, last)\nseen = Concat <axis = 3> (b, a)\n"
              + CHOSEN).replace("bool yes", "int64[1] end = {-1}, bool yes"),
    ),
    "the last row's": (
        "leaking-mask", "error",
        plain(REAL + "seen = Gather <axis = 0> (row, end)\n" + CHOSEN).replace("bool yes", "int64[1] end = {-1}, bool yes"),
    ),
    "sizes of hidden states": (
        "first-row-mask", "error",
        plain(REAL + "h = Mul (q, k)\nsize = Shape <start = 0, end = 1> (h)\nfull = Concat <axis = 0> (size, i2, i2, i2)\n"
              "first = Slice (row, i1, i2, i1)\nseen = Expand (first, full)\n" + CHOSEN),
    ),
    "fixed sizes": (
        "leaking-mask", "error", WRONG["joined by or"][1].replace("batch", "1").replace("length", "16"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MORE_WRONG)
def test_how_certain_a_finding_is(name: str, tmp_path: Path) -> None:
    rule, severity, text = MORE_WRONG[name]
    report = audited(text, tmp_path)
    assert {(finding.rule, finding.severity) for finding in report.findings} == {(rule, severity)}, report.text()


KEYS_FIRST = "qt = Transpose <perm = [0, 1, 3, 2]> (q)\nscores = MatMul (k, qt)\n"
COLUMN = "real = Cast <to = 9> (attention_mask)\nseen = Unsqueeze (real, queries)\n"
DOWN = "w = Softmax <axis = 2> (masked)\nwt = Transpose <perm = [0, 1, 3, 2]> (w)\ny = MatMul (wt, v)\n"
MORE_RIGHT = {
    "a source's keys": CROSS.replace("(seen, scores, low)", "(row, scores, low)"),
    "head by head": plain(
        REAL + SCORES + "m = Where (row, scores, low)\na, b = Split <axis = 1, num_outputs = 2> (m)\n"
        "masked = Concat <axis = 1> (b, a)\n" + END
    ),
    "a sum of one": plain(REAL + SCORES + "m = Where (row, scores, low)\nmasked = Sum (m)\n" + END),
    "a sum that a Clip without limits leaves as it is": plain(
        REAL + SCORES + "masked = Where (row, scores, low)\ntop = ReduceMax <keepdims = 1> (masked, last)\n"
        "less = Sub (masked, top)\ne = Exp (less)\nsum = ReduceSum <keepdims = 1> (e, last)\nsame = Clip (sum)\n"
        "weights = Div (e, same)\ny = MatMul (weights, v)\n"
    ),
    "a past of any length": ONE_PAST % "past",
    "places are the sums of the mask": COUNTED % (
        "sums = CumSum (attention_mask, one64)\nless = Sub (sums, one64)\nplaces = Max (less, i0)\n"
    ),
    "every token is of the first type": COUNTED % (
        "types = ConstantOfShape <value = int64[1] {1}> (size)\nplaces = Mul (types, i0)\n"
    ),
    "numbers to add, times one": plain(
        REAL + "f = Where (row, zero, low)\nbias = Mul (one, f)\n" + ADDED
    ),
    "zeros in the place of rows without keys": plain(
        REAL + "both = And (row, causal)\nn = Cast <to = 7> (both)\nmost = ReduceMax <keepdims = 1> (n, last)\n"
        "any = Cast <to = 9> (most)\n" + SCORES + "m = Where (both, scores, inf)\nmasked = Where (any, m, zero)\n" + END,
        f"{IDS}, {CAUSAL}",
    ).replace("bool yes", "float inf = {-inf}, bool yes"),
    "a place that is one number": plain(
        REAL + "size = Shape <start = 1, end = 2> (attention_mask)\ncount = Squeeze (size)\n"
        "places = Range (i0, count, one64)\nnear = GreaterOrEqual (places, start_position)\nseen = And (row, near)\n"
        + CHOSEN,
        f"{IDS}, int64 start_position",
    ).replace("bool yes", "int64 one64 = {1}, bool yes"),
    "a causal mask behind a past": CACHED % "old",
    "tokens that are seen from everywhere": plain(
        "all = Cast <to = 9> (global_attention_mask)\nalls = Unsqueeze (all, keys)\n" + REAL
        + "near = Or (causal, alls)\nseen = And (row, near)\n" + CHOSEN,
        f"{IDS}, int64[batch, length] global_attention_mask, {CAUSAL}",
    ),
    "caches in place": IN_PLACE,
    "single steps": STEP,
    "scores of integers": plain(REAL + QUANTISED + "masked = Where (row, scores, low)\n" + END),
    "row by row": plain(REAL + ROW_BY_ROW.format("m, scores, low")),
    "a mask for each layer": plain(
        REAL + "one5 = Unsqueeze (row, i1)\nmasks = Concat <axis = 0> (one5, one5)\n" + LAYERS
    ),
    "made row by row": plain(MADE_BY_ROWS % "Identity" + CHOSEN),
    "queries without keys see all": plain(
        REAL + "n = Cast <to = 7> (row)\nsum = ReduceSum <keepdims = 1> (n, last)\nempty = Equal (sum, i0)\n"
        "seen = Or (row, empty)\n" + CHOSEN
    ),
    "an input that lets every token see itself": plain(
        REAL + "seen = Or (row, itself)\n" + CHOSEN, f"{IDS}, bool[1, 1, length, length] itself"
    ),
    "multiplied before the softmax, and masked behind it": plain(
        FLOATS + SCORES + "kept = Mul (scores, ones)\nw = Softmax <axis = -1> (kept)\nm = Mul (w, ones)\n"
        "sum = ReduceSum <keepdims = 1> (m, last)\nmore = Add (sum, eps)\nweights = Div (m, more)\ny = MatMul (weights, v)\n"
    ),
    "keys before queries": plain(COLUMN + KEYS_FIRST + "masked = Where (seen, scores, low)\n" + DOWN),
    "numbers to add, for each key": plain(
        "bias = Unsqueeze (attention_mask, keys)\n" + ADDED, "float[batch, length] attention_mask"
    ),
    "queries and keys, which may be written either way": plain(
        "seen = Not (attention_mask)\n" + CHOSEN, "bool[batch, 1, length, length] attention_mask"
    ),
    "positions of the mask, and a source that needs none": plain(
        "counted = CumSum (attention_mask, one64)\nf = Cast <to = 1> (counted)\ncolumn = Unsqueeze (f, queries)\n"
        "angle = Cos (column)\n" + REAL + SCORES + "masked = Where (row, scores, low)\nw = Softmax <axis = -1> (masked)\n"
        "x = MatMul (w, v)\nturned = Mul (x, angle)\net = Transpose <perm = [0, 1, 3, 2]> (encoded)\n"
        "more = MatMul (turned, et)\nother = Softmax <axis = -1> (more)\ny = MatMul (other, encoded)\n",
        f"{IDS}, float[batch, 2, source, 4] encoded",
    ).replace("bool yes", "int64 one64 = {1}, bool yes"),
    "a branch that is never taken": plain(
        REAL + "seen = If (yes) <then_branch = t () => (bool[batch, 1, 1, length] a) {a = Identity (row)}, "
        "else_branch = e () => (bool[batch, 1, 1, length] b) {b = Not (row)}>\n" + CHOSEN
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MORE_RIGHT)
def test_odd_but_right(name: str, tmp_path: Path) -> None:
    report = audited(MORE_RIGHT[name], tmp_path)
    assert report.findings == () and report.unjudged == 0, report.text()
