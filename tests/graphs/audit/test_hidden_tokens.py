"""Masks that hide too much: a token that others' padding hides, or that is hidden by itself; right ones are left alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.graphs.audit.test_hidden_keys import CHOSEN, FLOATS, IDS, REAL, STORED, operator, plain
from tests.graphs.audit.test_odd_masks import CACHED, STEP
from tests.graphs.audit.test_rules import CAUSAL, HEAD, OUT, QKV, SCORES, audited

ANY = "least = ReduceMin (attention_mask, i1)\nreal = Cast <to = 9> (least)\nrow = Unsqueeze (real, keys)\n"
"""What is padding in any row counts as padding in all."""
PLACES = (
    "size = Shape <start = 1, end = 2> (attention_mask)\ncount = Squeeze (size)\nplaces = Range (i0, count, one64)\n"
    "column = Unsqueeze (places, i2)\n"
)
COUNTED = "sums = CumSum (attention_mask, one64)\nk_at = Unsqueeze (sums, keys)\nq_at = Unsqueeze (sums, queries)\n"
PADS = (
    "none = ArgMax <axis = 1> (attention_mask)\nfirst = Sub (places, none)\nchunk = Div (first, three)\n"
    "k_at = Unsqueeze (chunk, keys)\nq_at = Unsqueeze (chunk, queries)\n"
)


def more(text: str) -> str:
    """A graph with some further constants."""
    return text.replace("bool yes", "int64 one64 = {1}, int64 three = {3}, int64 two64 = {2}, bool yes")


WRONG = {
    "what any row hides": ("error", plain(ANY + "seen = Identity (row)\n" + CHOSEN)),
    "what any row hides, and the future": ("error", plain(ANY + "seen = And (row, causal)\n" + CHOSEN, f"{IDS}, {CAUSAL}")),
    "what any row hides, as numbers": (
        "error",
        plain(FLOATS + "bias0 = Sub (ones, one)\nbias1 = Mul (bias0, big)\nbias = ReduceMin (bias1, i1)\n"
              + CHOSEN.replace("masked = Where (seen, scores, low)", "masked = Add (scores, bias)"))
        .replace("bool yes", "float big = {3.0e38}, bool yes"),
    ),
    "what any row hides, for an operator": (
        "error", f"{HEAD}g ({QKV}, {IDS}) {OUT}\n<{STORED}>\n{{\n{ANY}y = Attention (q, k, v, row)\n}}",
    ),
    "what any row hides, behind a past": (
        "error", CACHED.replace(REAL, ANY) % "old",
    ),
    "what any row hides, in single steps": ("error", STEP.replace(REAL, ANY)),
    "padding's neighbours": (
        "error",
        more(plain("a = Slice (attention_mask, i1, end, i2)\nb = Slice (attention_mask, i1, i2, i2)\n"
                   "moved = Concat <axis = 1> (b, a)\nboth = Mul (attention_mask, moved)\n"
                   + REAL.replace("(attention_mask)", "(both)") + "seen = Identity (row)\n" + CHOSEN))
        .replace("bool yes", "int64[1] end = {-1}, bool yes"),
    ),
    "some tokens do not see themselves": (
        "warning",
        more(plain(PLACES + REAL + "same = Equal (places, column)\nthird = Equal (places, three)\nown = And (same, third)\n"
                   "other = Not (own)\nseen = And (row, other)\n" + CHOSEN)),
    ),
    "other names, which may mean something else": (
        "warning",
        plain(ANY + "seen = Identity (row)\n" + CHOSEN).replace("attention_mask", "src_padding_mask"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_hidden_tokens_are_found(name: str, tmp_path: Path) -> None:
    severity, text = WRONG[name]
    report = audited(more(text) if "one64" not in text else text, tmp_path)
    assert {(finding.rule, finding.severity) for finding in report.findings} == {("hidden-tokens", severity)}, (
        report.text()
    )


RIGHT = {
    "a window": more(plain(
        PLACES + REAL + "far = Sub (column, places)\nnear = Less (far, three)\nbefore = LessOrEqual (places, column)\n"
        "both = And (near, before)\nseen = And (row, both)\n" + CHOSEN)),
    "a window of counted tokens": more(plain(
        COUNTED + REAL + "far = Sub (q_at, k_at)\nnear = Less (far, three)\nseen = And (row, near)\n" + CHOSEN)),
    "chunks that begin behind left padding": more(plain(
        PLACES + PADS.replace("first = Sub (places, none)", "off = Unsqueeze (none, i2)\nfirst = Sub (places, off)")
        .replace("<axis = 1>", "<axis = 1, keepdims = 0>") + REAL + "same = Equal (k_at, q_at)\nseen = And (row, same)\n"
        + CHOSEN)),
    "chunks of counted tokens": more(plain(
        "sums = CumSum (attention_mask, one64)\nless = Sub (sums, one64)\nchunk = Div (less, three)\n"
        "k_at = Unsqueeze (chunk, keys)\nq_at = Unsqueeze (chunk, queries)\n" + REAL
        + "same = Equal (k_at, q_at)\nseen = And (row, same)\n" + CHOSEN)),
    "the longest row's length": plain(
        REAL + "some = ReduceMax (attention_mask, i1)\nany = Cast <to = 9> (some)\nalls = Unsqueeze (any, keys)\n"
        "seen = And (row, alls)\n" + CHOSEN),
    "padding's own queries see nothing": plain(
        REAL + "own = Unsqueeze (real, queries)\nboth = And (row, own)\nseen = Identity (both)\n" + CHOSEN),
    "a prefix that sees itself both ways": more(plain(
        PLACES + REAL + "prefix = Less (places, three)\nbefore = LessOrEqual (places, column)\nnear = Or (prefix, before)\n"
        "seen = And (row, near)\n" + CHOSEN)),
    "an operator that hides nothing else": operator(
        "m = Cast <to = 6> (attention_mask)\nn = Identity (q)\n"
        'y = com.microsoft.MultiHeadAttention <num_heads = 2> (n, k, v, "", m)'),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_masks_hide_no_token(name: str, tmp_path: Path) -> None:
    report = audited(RIGHT[name], tmp_path)
    assert report.findings == () and report.unjudged == 0, report.text()


CROSS = (
    f"{HEAD}g (float[batch, 2, length, 4] q, float[batch, 2, source, 4] k, float[batch, 2, source, 4] v, "
    f"int64[batch, length] decoder_attention_mask, int64[batch, source] attention_mask) {OUT}\n<{STORED}>\n{{\n{REAL}"
    "own = Cast <to = 9> (decoder_attention_mask)\ncolumn = Unsqueeze (own, queries)\n%s}"
)
BOTH = "seen = And (row, column)\n" + CHOSEN
TWO_MASKS = {
    "one for queries and one for keys": ([], CROSS % BOTH),
    "the keys' mask is the first row's": (
        ["first-row-mask"], CROSS % ("first = Gather <axis = 0> (row, i1)\n" + BOTH.replace("(row, c", "(first, c")),
    ),
    "both are of one sequence": (["query-axis-mask"], (CROSS % BOTH).replace("source", "length")),
}  # fmt: skip


@pytest.mark.parametrize("name", TWO_MASKS)
def test_two_masks_of_one_layer(name: str, tmp_path: Path) -> None:
    """A decoder's cross-attention may be told which queries are padding, which nobody reads."""
    rules, text = TWO_MASKS[name]
    report = audited(text, tmp_path)
    assert [finding.rule for finding in report.findings if finding.severity == "error"] == rules, report.text()


BEHIND = (
    "w = Softmax <axis = -1> (scores)\nm = %s\nsum = ReduceSum <keepdims = 1> (m, last)\nmore = Add (sum, eps)\n"
    "weights = Div (m, more)\ny = MatMul (weights, v)\n"
)
ANY_BEHIND = "least = ReduceMin (ones, i1)\n"
MASKED_BEHIND = {
    "multiplied": ("", FLOATS + SCORES + BEHIND % "Mul (w, ones)"),
    "chosen": ("", REAL + SCORES + BEHIND % "Where (row, w, zero)"),
    "zeros chosen": ("", REAL + "n = Not (row)\n" + SCORES + BEHIND % "Where (n, zero, w)"),
    "inverted": ("inverted-mask", FLOATS + "n = Sub (one, ones)\n" + SCORES + BEHIND % "Mul (w, n)"),
    "zeros chosen for tokens": ("inverted-mask", REAL + SCORES + BEHIND % "Where (row, zero, w)"),
    "what any row hides": ("hidden-tokens", FLOATS + ANY_BEHIND + SCORES + BEHIND % "Mul (w, least)"),
}
"""Weights that are masked behind the softmax, and divided by their sum."""


@pytest.mark.parametrize("name", MASKED_BEHIND)
def test_masks_behind_the_softmax(name: str, tmp_path: Path) -> None:
    rule, text = MASKED_BEHIND[name]
    report = audited(plain(text), tmp_path)
    assert [finding.rule for finding in report.findings] == [rule] * bool(rule) and report.unjudged == 0, report.text()


KEYS_AT = {
    "behind the rows": ("0, 3, 1, 2", "<axis = 1>", "0, 2, 3, 1"),
    "behind the rows, heads last": ("0, 3, 2, 1", "<axis = 1>", "0, 3, 2, 1"),
    "in front": ("3, 0, 1, 2", "<axis = 0>", "1, 2, 3, 0"),
    "third": ("0, 1, 3, 2", "<axis = -2>", "0, 1, 3, 2"),
    "third, heads last": ("0, 2, 3, 1", "<axis = 2>", "0, 3, 1, 2"),
}
"""Where a softmax finds the keys, and how the scores come there and back."""


@pytest.mark.parametrize("wrong", [False, True])
@pytest.mark.parametrize("place", KEYS_AT)
def test_the_softmax_may_go_along_any_axis(place: str, wrong: bool, tmp_path: Path) -> None:
    there, axis, back = KEYS_AT[place]
    turned = plain(
        REAL + "seen = And (row, causal)\nkt = Transpose <perm = [0, 1, 3, 2]> (k)\nscores = MatMul (q, kt)\n"
        + ("n = Not (seen)\nmasked = Where (n, scores, low)\n" if wrong else "masked = Where (seen, scores, low)\n")
        + f"turned = Transpose <perm = [{there}]> (masked)\nw = Softmax {axis} (turned)\n"
        f"weights = Transpose <perm = [{back}]> (w)\ny = MatMul (weights, v)\n",
        f"{IDS}, {CAUSAL}",
    )  # fmt: skip
    report = audited(turned, tmp_path)
    assert bool(report.findings) == wrong and report.unjudged == 0, report.text()
