"""Masks that are there and do not hide: every spelling is found by its numbers, and right ones are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.graphs.audit.test_rules import CAUSAL, END, HEAD, OUT, QKV, SCORES, audited, graph

IDS = "int64[batch, length] attention_mask"
STORED = (
    "float low = {-3.4028235e38}, float zero = {0.0}, float one = {1.0}, float fill = {-10000.0}, int64 i0 = {0}, "
    "int64[1] i1 = {0}, int64[1] i2 = {1}, int64[2] keys = {1, 2}, int64[2] queries = {1, 3}, int64[1] last = {3}, "
    "float eps = {0.000001}, bool yes = {1}, int64 turns = {2}"
)
REAL = "real = Cast <to = 9> (attention_mask)\nrow = Unsqueeze (real, keys)\n"
FLOATS = "reals = Cast <to = 1> (attention_mask)\nones = Unsqueeze (reals, keys)\n"
CHOSEN = SCORES + "masked = Where (seen, scores, low)\n" + END
ADDED = SCORES + "masked = Add (scores, bias)\n" + END


def plain(body: str, inputs: str = IDS) -> str:
    return graph(body, inputs, STORED)


def operator(call: str, inputs: str = IDS) -> str:
    """A graph of one com.microsoft operator on q, k and v (batch, length, 4)."""
    given = "float[batch, length, 4] q, float[batch, length, 4] k, float[batch, length, 4] v"
    return f"{HEAD}g ({given}, {inputs}) => (float[batch, length, 4] y)\n<{STORED}>\n{{\n{call}\n}}"


def looped(masking: str, kind: str = "Loop") -> str:
    """One layer in the body of a Loop or a Scan, twice; ``row`` enters it as a state."""
    layer = (
        "kt = Transpose <perm = [0, 1, 3, 2]> (h)\nscores = MatMul (q, kt)\n" + masking
        + "weights = Softmax <axis = -1> (masked)\nho = MatMul (weights, v)\nmo = Identity (m)\n"
    )  # fmt: skip
    state = "float[batch, 2, length, 4] h, bool[batch, 1, 1, length] m"
    out = "float[batch, 2, length, 4] ho, bool[batch, 1, 1, length] mo"
    if kind == "Loop":
        body = f"body = b (int64 i, bool c, {state}) => (bool co, {out}) {{\nco = Identity (c)\n{layer}}}"
        return plain(f"{REAL}y, rest = Loop (turns, yes, k, row) <{body}>\n")
    body = f"body = b ({state}, int64 x) => ({out}) {{\n{layer}}}"
    return plain(f"{REAL}xs = Range (i0, turns, turns)\ny, rest = Scan (k, row, xs) <num_scan_inputs = 1, {body}>\n")


def exponentials(masking: str, end: str) -> str:
    return plain(masking + end + "y = MatMul (weights, v)\n")


SPELLED = "e = Exp (masked)\nsum = ReduceSum <keepdims = 1> (e, last)\nweights = Div (e, sum)\n"
SHIFTED = (
    "top = ReduceMax <keepdims = 1> (masked, last)\nless = Sub (masked, top)\ne = Exp (less)\n"
    "sum = ReduceSum <keepdims = 1> (e, last)\nweights = Div (e, sum)\n"
)
OR = REAL + "seen = Or (row, causal)\n"

WRONG = {
    "scores times the mask": ("multiplied-mask", plain(FLOATS + SCORES + "masked = Mul (scores, ones)\n" + END)),
    "keys times the mask": (
        "multiplied-mask",
        plain(FLOATS + "column = Transpose <perm = [0, 1, 3, 2]> (ones)\nkept = Mul (k, column)\n"
              + SCORES.replace("(k)", "(kept)") + "masked = Identity (scores)\n" + END),
    ),
    "queries times the mask": (
        "multiplied-mask",
        plain(FLOATS + "column = Transpose <perm = [0, 1, 3, 2]> (ones)\nkept = Mul (q, column)\n"
              + SCORES.replace("(q,", "(kept,") + "masked = Identity (scores)\n" + END),
    ),
    "keys of an operator times the mask": (
        "multiplied-mask",
        operator("reals = Cast <to = 1> (attention_mask)\ncolumn = Unsqueeze (reals, last2)\nkept = Mul (k, column)\n"
                 "n = Identity (q)\ny = com.microsoft.MultiHeadAttention <num_heads = 2> (n, kept, v)"
                 ).replace("bool yes", "int64[1] last2 = {2}, bool yes"),
    ),
    "joined by or": ("leaking-mask", plain(OR + CHOSEN, f"{IDS}, {CAUSAL}")),
    "hidden where both hide": (
        "leaking-mask",
        plain(REAL + "a = Not (row)\nb = Not (causal)\nhidden = And (a, b)\nseen = Not (hidden)\n" + CHOSEN,
              f"{IDS}, {CAUSAL}"),
    ),
    "joined by or, for an operator": (
        "leaking-mask",
        f"{HEAD}g ({QKV}, {IDS}, {CAUSAL}) {OUT}\n<{STORED}>\n{{\n{OR}y = Attention (q, k, v, seen)\n}}",
    ),
    "the larger of two biases": (
        "leaking-mask",
        plain(REAL + "a = Where (row, zero, fill)\nb = Where (causal, zero, fill)\nbias = Max (a, b)\n" + ADDED,
              f"{IDS}, {CAUSAL}"),
    ),
    "inverted": ("inverted-mask", plain(REAL + "seen = Not (row)\n" + CHOSEN)),
    "inverted, as numbers": (
        "inverted-mask", plain(FLOATS + "bias = Mul (ones, fill)\n" + ADDED),
    ),
    "inverted, branches changed": (
        "inverted-mask", plain(REAL + SCORES + "masked = Where (row, low, scores)\n" + END),
    ),
    "inverted, for an operator": (
        "inverted-mask",
        operator("other = Sub (one64, attention_mask)\nm = Cast <to = 6> (other)\n"
                 'y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, k, v, "", m)'
                 ).replace("bool yes", "int64 one64 = {1}, bool yes"),
    ),
    "on the queries": (
        "query-axis-mask",
        plain("real = Cast <to = 9> (attention_mask)\nseen = Unsqueeze (real, queries)\n" + CHOSEN),
    ),
    "on the queries, added": (
        "query-axis-mask",
        plain("real = Cast <to = 9> (attention_mask)\nrow = Unsqueeze (real, queries)\n"
              "bias = Where (row, zero, fill)\n" + ADDED),
    ),
    "the first row, gathered": (
        "first-row-mask", plain(REAL + "seen = Gather <axis = 0> (row, i1)\n" + CHOSEN),
    ),
    "the first row, sliced": (
        "first-row-mask", plain(REAL + "seen = Slice (row, i1, i2, i1)\n" + CHOSEN),
    ),
    "the first row of a stored triangle's mask": (
        "first-row-mask",
        plain(REAL + "both = And (row, causal)\nseen = Slice (both, i1, i2, i1)\n" + CHOSEN, f"{IDS}, {CAUSAL}"),
    ),
    "multiplied in a loop": (
        "multiplied-mask", looped("f = Cast <to = 1> (m)\nmasked = Mul (scores, f)\n"),
    ),
    "inverted in a scan": ("inverted-mask", looped("masked = Where (m, low, scores)\n", "Scan")),
    "summed in a loop": (
        "summed-masks",
        looped("a = Where (m, zero, fill)\nb = Add (scores, a)\nmasked = Add (b, a)\n"),
    ),
    "infinite in a scan": (
        "nan-rows",
        looped("masked = Where (m, scores, inf)\n", "Scan").replace("bool yes", "float inf = {-inf}, bool yes"),
    ),
    "made in a loop, inverted": (
        "inverted-mask",
        plain(REAL + "start = Where (row, low, zero)\ncopy, bias = Loop (turns, yes, start) <body = b (int64 i, bool c, "
              "float[batch, 1, 1, length] m) => (bool co, float[batch, 1, 1, length] mo, float[batch, 1, 1, length] mm) "
              "{co = Identity (c)\nmo = Identity (m)\nmm = Identity (m)}>\nunused = Identity (bias)\n" + SCORES
              + "masked = Add (scores, copy)\n" + END),
    ),
    "multiplied before a softmax that is spelled out": (
        "multiplied-mask", exponentials(FLOATS + SCORES + "masked = Mul (scores, ones)\n", SHIFTED),
    ),
    "summed before a softmax that is spelled out": (
        "summed-masks",
        exponentials(REAL + "a = Where (row, zero, fill)\nb = Add (a, a)\n" + SCORES + "masked = Add (scores, b)\n",
                     SHIFTED),
    ),
    "exponentials of 0 divided by their sum": (
        "nan-rows", exponentials(REAL + SCORES + "masked = Where (row, scores, low)\n", SPELLED),
    ),
    "exponentials times the mask, inverted": (
        "inverted-mask",
        exponentials("reals = Cast <to = 1> (attention_mask)\nrow = Unsqueeze (reals, keys)\nw = Sub (one, row)\n" + SCORES
                     + "masked = Identity (scores)\n",
                     "e = Exp (masked)\nm = Mul (e, w)\nsum = ReduceSum <keepdims = 1> (m, last)\n"
                     "more = Add (sum, eps)\nweights = Div (m, more)\n"),
    ),
    "masked exponentials divided by their sum": (
        "nan-rows",
        exponentials(FLOATS + SCORES + "masked = Identity (scores)\n",
                     "e = Exp (masked)\nm = Mul (e, ones)\nsum = ReduceSum <keepdims = 1> (m, last)\n"
                     "weights = Div (m, sum)\n"),
    ),
    "masked weights divided by their sum": (
        "nan-rows",
        plain(FLOATS + SCORES + "w = Softmax <axis = -1> (scores)\nm = Mul (w, ones)\n"
              "sum = ReduceSum <keepdims = 1> (m, last)\nweights = Div (m, sum)\ny = MatMul (weights, v)\n"),
    ),
    "powers of two, inverted": (
        "inverted-mask",
        exponentials(REAL + "n = Not (row)\n" + SCORES + "masked = Where (n, scores, low)\n",
                     SHIFTED.replace("Exp (less)", "Pow (two, less)")).replace("bool yes", "float two = {2.0}, bool yes"),
    ),
    "inverted, by classes": (
        "inverted-mask",
        plain("hot = OneHot <axis = -1> (attention_mask, turns, onoff)\nnone = Gather <axis = -1> (hot, i0)\n"
              "w = Unsqueeze (none, keys)\nless = Sub (one, w)\nbias = Mul (less, low)\n" + ADDED
              ).replace("bool yes", "float[2] onoff = {0.0, 1.0}, bool yes"),
    ),
    "sorted": (
        "leaking-mask",
        plain("size = Shape <start = 1, end = 2> (attention_mask)\nfirst, places = TopK <axis = 1> (attention_mask, size)\n"
              "real = Cast <to = 9> (first)\nseen = Unsqueeze (real, keys)\n" + CHOSEN),
    ),
    "all up to the last token": (
        "leaking-mask",
        plain("place = ArgMax <axis = 1, select_last_index = 1> (attention_mask)\nsize = Shape <start = 1, end = 2> "
              "(attention_mask)\nlength = Squeeze (size)\ncounted = Range (i0, length, step)\n"
              "real = LessOrEqual (counted, place)\nseen = Unsqueeze (real, keys)\n" + CHOSEN
              ).replace("bool yes", "int64 step = {1}, bool yes"),
    ),
    "by the logarithm, on the queries": (
        "query-axis-mask",
        exponentials("real = Cast <to = 9> (attention_mask)\nrow = Unsqueeze (real, queries)\n" + SCORES
                     + "masked = Where (row, scores, low)\n", "l = LogSoftmax <axis = -1> (masked)\nweights = Exp (l)\n"),
    ),
}  # fmt: skip
FACTORS = FLOATS + "no = Sub (one, ones)\nnc = Not (causal)\nafter = Cast <to = 1> (nc)\n"
SUMMED = {
    "each with a factor, then counted": FACTORS + "f = Cast <to = 1> (local)\na = Mul (no, f)\nb = Mul (after, f)\n"
    "n = Add (a, b)\nbias = Mul (n, fill)\n",
    "each with a factor": FACTORS + "f = Cast <to = 1> (local)\na0 = Mul (no, fill)\nb0 = Mul (after, fill)\n"
    "a = Mul (a0, f)\nb = Mul (b0, f)\nbias = Add (a, b)\n",
    "stacked, and reduced": REAL + "size = Shape (causal)\na0 = Where (row, zero, fill)\na = Expand (a0, size)\n"
    "b0 = Where (causal, zero, fill)\nb = Add (b0, zero)\nrows = Shape (a)\nb2 = Expand (b, rows)\na4 = Unsqueeze (a, i1)\n"
    "b4 = Unsqueeze (b2, i1)\nboth = Concat <axis = 0> (a4, b4)\nbias = ReduceSum <keepdims = 0> (both, i1)\n",
    "what both show, less two": FLOATS + "c = Cast <to = 1> (causal)\nn = Add (ones, c)\nless = Sub (n, two)\n"
    "bias = Mul (less, up)\n",
    "counted, and negated": FACTORS + "n = Add (no, after)\nm = Neg (n)\nbias = Mul (m, up)\n",
}  # fmt: skip
MORE = "float two = {2.0}, float up = {10000.0}, bool yes"


@pytest.mark.parametrize("name", SUMMED)
def test_sums_in_any_spelling_are_found(name: str, tmp_path: Path) -> None:
    """By what a row without keys sees: it prefers those that one mask hides to those that both do."""
    text = plain(SUMMED[name] + ADDED, f"{IDS}, {CAUSAL}, bool local").replace("bool yes", MORE)
    report = audited(text, tmp_path)
    assert [(finding.rule, finding.severity) for finding in report.findings] == [("summed-masks", "error")]


@pytest.mark.parametrize(
    ("factors", "found"),
    [
        ("f = Cast <to = 1> (local)\ng = Sub (one, f)\n", []),
        ("other = Not (local)\nf = Cast <to = 1> (local)\ng = Cast <to = 1> (other)\n", []),
        ("f = Cast <to = 1> (local)\ng = Sub (two, f)\n", ["summed-masks"]),
    ],
)
def test_masks_of_which_one_is_taken_are_no_sum(factors: str, found: list[str], tmp_path: Path) -> None:
    """A switch between a window and none, written as f * a + (1 - f) * b, both of which hide padding."""
    masks = REAL + "both = And (row, causal)\na0 = Where (row, zero, fill)\nb0 = Where (both, zero, fill)\n" + factors
    text = plain(
        masks + "a = Mul (a0, f)\nb = Mul (g, b0)\nbias = Add (a, b)\n" + ADDED, f"{IDS}, {CAUSAL}, bool local"
    ).replace("bool yes", MORE)
    assert [finding.rule for finding in audited(text, tmp_path).findings] == found


def test_masks_that_are_multiplied_are_no_sum(tmp_path: Path) -> None:
    body = FLOATS + "c = Cast <to = 1> (causal)\nn = Mul (ones, c)\nless = Sub (n, one)\nbias = Mul (less, up)\n"
    text = plain(body + ADDED, f"{IDS}, {CAUSAL}").replace("bool yes", MORE)
    assert audited(text, tmp_path).findings == ()


@pytest.mark.parametrize("name", WRONG)
def test_wrong_masks_are_found(name: str, tmp_path: Path) -> None:
    rule, text = WRONG[name]
    report = audited(text, tmp_path)
    assert {finding.rule for finding in report.findings} - {"unused-mask"} == {rule}, report.text()
    assert {finding.severity for finding in report.of(rule)} == {"error"} and report.attentions == 1


RIGHT = {
    "chosen": plain(REAL + "seen = Identity (row)\n" + CHOSEN),
    "joined by and": plain(REAL + "seen = And (row, causal)\n" + CHOSEN, f"{IDS}, {CAUSAL}"),
    "hidden where one hides": plain(
        REAL + "a = Not (row)\nb = Not (causal)\nhidden = Or (a, b)\nseen = Not (hidden)\n" + CHOSEN, f"{IDS}, {CAUSAL}"
    ),
    "the smaller of two biases": plain(
        REAL + "a = Where (row, zero, low)\nb = Where (causal, zero, low)\nbias = Min (a, b)\n" + ADDED,
        f"{IDS}, {CAUSAL}",
    ),
    "multiplied, then filled": plain(
        FLOATS + "none = Sub (one, ones)\nbias = Mul (none, low)\n" + SCORES + "kept = Mul (scores, ones)\n"
        "masked = Add (kept, bias)\n" + END
    ),
    "in a loop": looped("masked = Where (m, scores, low)\n"),
    "in a scan": looped("masked = Where (m, scores, low)\n", "Scan"),
    "spelled out": exponentials(REAL + SCORES + "masked = Where (row, scores, low)\n", SHIFTED),
    "spelled out, guarded": exponentials(
        REAL + SCORES + "masked = Where (row, scores, low)\n", SPELLED.replace("(e, sum)", "(e, more)").replace(
            "weights", "more = Add (sum, eps)\nweights")),
    "exponentials times the mask": exponentials(
        FLOATS + SCORES + "masked = Identity (scores)\n",
        "e = Exp (masked)\nm = Mul (e, ones)\nsum = ReduceSum <keepdims = 1> (m, last)\nmore = Max (sum, eps)\n"
        "weights = Div (m, more)\n",
    ),
    "a mask that says what is padding": plain(
        "row = Unsqueeze (key_padding_mask, keys)\nseen = Not (row)\n" + CHOSEN, "bool[batch, length] key_padding_mask"
    ),
    "a mask of numbers to add": plain(
        "bias = Identity (attention_mask)\n" + ADDED, "float[batch, 1, 1, length] attention_mask"
    ),
    "heads in the batch": (
        f"{HEAD}g (float[rows, length, 4] q, float[rows, length, 4] k, float[rows, length, 4] v, {IDS})\n"
        f"=> (float[rows, length, 4] y)\n<int64[4] shape = {{1, 2, 1, 1}}, int64[1] rest = {{-1}}, {STORED}>\n{{\n"
        f"{REAL}two = Expand (row, shape)\nlength = Shape <start = 1, end = 2> (attention_mask)\n"
        "three = Concat <axis = 0> (rest, i2, length)\nflat = Reshape (two, three)\n"
        "kt = Transpose <perm = [0, 2, 1]> (k)\nscores = MatMul (q, kt)\nmasked = Where (flat, scores, low)\n"
        "weights = Softmax <axis = -1> (masked)\ny = MatMul (weights, v)\n}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_masks_are_not(name: str, tmp_path: Path) -> None:
    report = audited(RIGHT[name], tmp_path)
    assert report.findings == () and report.attentions == 1, report.text()


def test_a_softmax_along_the_queries_is_named(tmp_path: Path) -> None:
    """TorchScript's exporter loses count of Cohere 2's axes and writes 2 for the last one: the mask is where it belongs."""
    text = plain(REAL + "seen = And (row, causal)\n" + CHOSEN, f"{IDS}, {CAUSAL}").replace("axis = -1", "axis = 2")
    (finding,) = audited(text, tmp_path).findings
    assert finding.rule == "query-axis-mask" and "softmax goes along axis 2" in finding.message
