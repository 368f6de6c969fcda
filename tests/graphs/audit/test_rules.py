"""Every rule's page shows a graph with the mistake, and one without it; the audit must tell them apart."""

from __future__ import annotations

import re
from pathlib import Path

import onnx
import onnx.parser
import pytest

from trueport.graphs.audit import Report, audit
from trueport.graphs.audit.rule import Rule
from trueport.graphs.audit.rules import RULES

PAGES = Path(__file__).parents[3] / "docs" / "rules"


def blocks(rule: str, language: str = "onnx") -> list[str]:
    """The code blocks of a rule's page."""
    return re.findall(rf"```{language}\n(.*?)```", (PAGES / f"{rule}.md").read_text(encoding="utf-8"), re.DOTALL)


def audited(text: str, folder: Path, config: str = "") -> Report:
    """The report on a graph in ONNX's textual syntax."""
    path = folder / "graph.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    if config:
        (folder / "config.json").write_text(config, encoding="utf-8")
    return audit(path)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_page_shows_the_mistake(rule: Rule, tmp_path: Path) -> None:
    bad, good = blocks(rule.id)
    config = "".join(blocks(rule.id, "json"))
    report = audited(bad, tmp_path, config)
    assert {finding.rule for finding in report.findings} - {"unused-mask"} == {rule.id} - {"unused-mask"}
    nodes = {finding.node for finding in report.of(rule.id)}
    assert nodes & {"at_fault", "/layer.1/attention/Attention"}
    assert not report.clean
    assert audited(good, tmp_path, config).findings == ()


def test_every_rule_is_documented() -> None:
    assert {path.stem for path in PAGES.glob("*.md")} == {rule.id for rule in RULES} | {"README"}
    index = (PAGES / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[([\w-]+)\]", index, re.MULTILINE) == [rule.id for rule in RULES]
    repairable = re.findall(r"^\| \[([\w-]+)\].*\| yes \|$", index, re.MULTILINE)
    assert repairable == [rule.id for rule in RULES if rule.repairable]


HEAD = '<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>\n'
QKV = "float[batch, 2, length, 4] q, float[batch, 2, length, 4] k, float[batch, 2, length, 4] v"
MASK = "bool[batch, 1, 1, length] attention_mask"
CAUSAL = "bool[1, 1, length, length] causal"
SCORES = "kt = Transpose <perm = [0, 1, 3, 2]> (k)\nscores = MatMul (q, kt)\n"
END = "weights = Softmax <axis = -1> (masked)\ny = MatMul (weights, v)\n"
OUT = "=> (float[batch, 2, length, 4] y)"


def graph(body: str, inputs: str = MASK, constants: str = "float fill = {-10000.0}, float zero = {0.0}") -> str:
    """A graph with queries, keys and values beside ``inputs``."""
    return f"{HEAD}g ({QKV}, {inputs}) {OUT}\n<{constants}>\n{{\n{body}}}"


def weighted(masking: str, constants: str) -> str:
    """A graph whose weights say that scores spread by thousands."""
    return (
        f"{HEAD}g (float[batch, length, 2] x, float[batch, length, 2] v, bool[batch, 1, length] attention_mask)\n"
        "=> (float[batch, length, 2] y)\n"
        f"<float[2, 2] wq = {{90.0, -80.0, 110.0, 70.0}}, float[2, 2] wk = {{90.0, 100.0, -80.0, 120.0}}, {constants}>\n"
        "{\nq = MatMul (x, wq)\nk = MatMul (x, wk)\nkt = Transpose <perm = [0, 2, 1]> (k)\nscores = MatMul (q, kt)\n"
        f"{masking}{END}}}"
    )


VARIANTS = {
    # One Where and one sum, as GPT-2's exports of the TorchScript days.
    "chosen, then added": (
        "summed-masks",
        graph(SCORES + "a = Where (causal, scores, fill)\nm = Where (attention_mask, zero, fill)\n"
              "masked = Add (a, m)\n" + END,
              f"{MASK}, {CAUSAL}"),
    ),
    # Summed before they meet the scores, as transformers did for years.
    "added to each other": (
        "summed-masks",
        graph("a = Where (causal, zero, fill)\nm = Where (attention_mask, zero, fill)\nboth = Add (a, m)\n" + SCORES
              + "masked = Add (scores, both)\n" + END, f"{MASK}, {CAUSAL}"),
    ),
    # Of the other sign.
    "taken off": (
        "summed-masks",
        graph("a = Where (causal, zero, big)\nm = Where (attention_mask, zero, big)\n" + SCORES
              + "one = Sub (scores, m)\nmasked = Sub (one, a)\n" + END,
              f"{MASK}, {CAUSAL}", "float big = {10000.0}, float zero = {0.0}"),
    ),
    "divided": (
        "summed-masks",
        graph("n = Not (attention_mask)\nc = Cast <to = 1> (n)\nm = Div (c, small)\na = Where (causal, zero, fill)\n"
              + SCORES + "one = Add (scores, m)\nmasked = Add (one, a)\n" + END,
              f"{MASK}, {CAUSAL}", "float fill = {-10000.0}, float small = {-0.0001}, float zero = {0.0}"),
    ),
    # (1 - mask) * -10000 inside a position bias.
    "inside a bias": (
        "summed-masks",
        graph("c = Cast <to = 1> (attention_mask)\ninv = Sub (one, c)\nm = Mul (inv, fill)\nhere = Add (bias, m)\n"
              "a = Where (causal, zero, fill)\nboth = Add (here, a)\n" + SCORES + "masked = Add (scores, both)\n" + END,
              f"{MASK}, {CAUSAL}, float[1, 2, length, length] bias",
              "float fill = {-10000.0}, float zero = {0.0}, float one = {1.0}"),
    ),
    "unidirectional": (
        "summed-masks",
        HEAD + "g (float[b, s, 4] x, float[4, 12] w, float[12] c, int32[b, s] attention_mask) => (float[b, s, 4] y)\n"
        "{ y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, c, attention_mask) }",
    ),
    "a mask and a bias of MultiHeadAttention": (
        "summed-masks",
        HEAD + "g (float[b, s, 4] q, int32[b, s] attention_mask, bool[1, 1, s, s] causal) => (float[b, s, 4] y)\n"
        "<float fill = {-10000.0}, float zero = {0.0}>\n{\nm = Where (causal, zero, fill)\n"
        'y = com.microsoft.MultiHeadAttention <num_heads = 2> (q, q, q, "", attention_mask, m)\n}',
    ),
    "product with -inf": (
        "nan-rows",
        graph("n = Not (attention_mask)\nc = Cast <to = 1> (n)\nm = Mul (c, fill)\n" + SCORES
              + "masked = Add (scores, m)\n" + END, constants="float fill = {-inf}"),
    ),
    "-inf bias on MultiHeadAttention": (
        "nan-rows",
        HEAD + "g (float[b, s, 4] q, bool[b, 1, s, s] attention_mask) => (float[b, s, 4] y)\n"
        "<float fill = {-inf}, float zero = {0.0}>\n{\nm = Where (attention_mask, zero, fill)\n"
        'n = Identity (q)\ny = com.microsoft.MultiHeadAttention <num_heads = 2> (q, n, n, "", "", m)\n}',
    ),
    "input that nothing reads": ("unused-mask", graph(SCORES + "masked = Identity (scores)\n" + END)),
    "lengths given": (
        "right-padding-only",
        HEAD + "g (float[b, s, 4] x, float[4, 12] w, float[12] c, int32[b] mask_index) => (float[b, s, 4] y)\n"
        "{ y = com.microsoft.Attention <num_heads = 2> (x, w, c, mask_index) }",
    ),
    "a weak fill on strong scores": (
        "reachable-fill",
        weighted("c = Cast <to = 1> (attention_mask)\ninv = Sub (one, c)\nm = Mul (inv, fill)\nmasked = Add (scores, m)\n",
                 "float fill = {-100.0}, float one = {1.0}"),
    ),
    "a negated fill": (
        "reachable-fill",
        weighted("n = Not (attention_mask)\nc = Cast <to = 1> (n)\ninv = Mul (c, fill)\nm = Neg (inv)\n"
                 "masked = Add (scores, m)\n", "float fill = {10000.0}"),
    ),
    "a computed fill": (
        "reachable-fill",
        weighted("ten = Sqrt (fill)\nlow = Mul (ten, part)\nm = Where (attention_mask, zero, low)\n"
                 "masked = Add (scores, m)\n", "float fill = {10000.0}, float part = {-100.0}, float zero = {0.0}"),
    ),
    "a fill in an If": (
        "reachable-fill",
        weighted("m = If (all) <then_branch = t () => (float[batch, 1, length] z) {z = Where (attention_mask, zero, zero)}, "
                 "else_branch = e () => (float[batch, 1, length] f) {f = Where (attention_mask, zero, fill)}>\n"
                 "masked = Add (scores, m)\n", "float fill = {-10000.0}, float zero = {0.0}, bool all = {0}"),
    ),
    "a cap behind the mask": (
        "reachable-fill",
        graph(SCORES + "a = Where (attention_mask, scores, fill)\nd = Div (a, cap)\nt = Tanh (d)\nmasked = Mul (t, cap)\n"
              + END, constants="float fill = {-3.4e38}, float cap = {30.0}"),
    ),
    "masks counted before the fill": (
        "summed-masks",
        graph("c = Cast <to = 1> (attention_mask)\na = Sub (one, c)\nn = Not (causal)\nb = Cast <to = 1> (n)\n"
              "hidden = Add (a, b)\nm = Mul (hidden, fill)\n" + SCORES + "masked = Add (scores, m)\n" + END,
              f"{MASK}, {CAUSAL}", "float fill = {-10000.0}, float one = {1.0}"),
    ),
    "a logarithm of the mask": (
        "nan-rows",
        graph("c = Cast <to = 1> (attention_mask)\nm = Log (c)\n" + SCORES + "masked = Add (scores, m)\n" + END),
    ),
    "a fill past float16": (
        "nan-rows",
        graph("m = Where (attention_mask, zero, fill)\nn = Cast <to = 10> (m)\n" + SCORES
              + "masked = Add (scores, n)\n" + END, constants="float fill = {-3.4e38}, float zero = {0.0}")
        .replace("float[batch", "float16[batch"),
    ),
    "keys compared with lengths": (
        "right-padding-only",
        HEAD + f"g (int64[batch, length] attention_mask, int64[length] counted, {QKV}) {OUT}\n"
        "<int64[1] axis = {1}, int64[2] axes = {1, 2}, float low = {-3.4e38}>\n{\n"
        "n = ReduceSum <keepdims = 1> (attention_mask, axis)\nbefore = Less (counted, n)\n"
        "seen = Unsqueeze (before, axes)\n" + SCORES + "masked = Where (seen, scores, low)\n" + END + "}",
    ),
    "stored triangle": (
        "baked-length",
        graph(SCORES + "a = And (attention_mask, tri)\nmasked = Where (a, scores, low)\n" + END,
              constants="bool[1, 1, 2, 2] tri = {1, 0, 1, 1}, float low = {-3.4e38}"),
    ),
    "expanded mask": (
        "baked-length",
        graph("m = Expand (attention_mask, shape)\n" + SCORES + "masked = Where (m, scores, low)\n" + END,
              constants="int64[4] shape = {2, 1, 7, 7}, float low = {-3.4e38}"),
    ),
    "cut mask": (
        "baked-length",
        graph("m = Slice (attention_mask, from, to, axis)\n" + SCORES + "masked = Where (m, scores, low)\n" + END,
              constants="int64[1] from = {0}, int64[1] to = {7}, int64[1] axis = {3}, float low = {-3.4e38}"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARIANTS)
def test_other_spellings(name: str, tmp_path: Path) -> None:
    rule, text = VARIANTS[name]
    report = audited(text, tmp_path)
    assert {finding.rule for finding in report.findings} == {rule}


TOKENS = "int64[batch, length] input_ids"
ATTENTION = HEAD + "g (%s) => (float[batch, 2, length, 4] y)\n<int64 pad = {0}, int64[2] axes = {1, 2}>\n{\n%s}"


def test_positions_are_no_mask(tmp_path: Path) -> None:
    """They may make the causal mask; what is padding they do not say."""
    body = (
        "column = Unsqueeze (position_ids, axes)\nrow = Transpose <perm = [0, 2, 1, 3]> (column)\n"
        "seen = GreaterOrEqual (column, row)\ny = Attention (q, k, v, seen)\n"
    )
    report = audited(ATTENTION % (f"{TOKENS}, int64[batch, length] position_ids, {QKV}", body), tmp_path)
    assert [(finding.rule, finding.severity) for finding in report.findings] == [("no-mask", "warning")]


RIGHT = {
    "padding that the tokens tell": ATTENTION % (
        f"{TOKENS}, {QKV}", "same = Equal (input_ids, pad)\nreal = Not (same)\nseen = Unsqueeze (real, axes)\n"
        "y = Attention (q, k, v, seen)\n",
    ),
    "one row, which needs no mask": ATTENTION % (
        f"int64[1, length] input_ids, {QKV}".replace("batch", "1"), "y = Attention <is_causal = 1> (q, k, v)\n",
    ),
    "a mask under a name of its own": ATTENTION % (
        f"{TOKENS}, float[batch, 1, 1, length] hidden, {QKV}", "y = Attention (q, k, v, hidden)\n",
    ),
    "tokens without attention": HEAD + f"g ({TOKENS}) => (int64[batch, length] y) {{ y = Identity (input_ids) }}",
    "a decoder behind an encoder": ATTENTION % (
        f"{TOKENS}, float[batch, source, 4] encoder_hidden_states, {QKV}",
        "y = Attention <is_causal = 1> (q, k, v)\n",
    ),
    "a decoder's own tokens": ATTENTION % (
        f"{TOKENS.replace('input_ids', 'decoder_input_ids')}, {QKV}", "y = Attention <is_causal = 1> (q, k, v)\n",
    ),
    "lowest fill in a position bias": graph(
        "m = Where (attention_mask, zero, low)\nboth = Add (bias, m)\n" + SCORES + "masked = Add (scores, both)\n" + END,
        f"{MASK}, float[1, 2, length, length] bias", "float low = {-3.4e38}, float zero = {0.0}",
    ),
    "sum that is limited from below": graph(
        "a = Where (causal, zero, low)\nm = Where (attention_mask, zero, low)\nboth = Add (a, m)\n" + SCORES
        + "sum = Add (scores, both)\nmasked = Max (sum, low)\n" + END,
        f"{MASK}, {CAUSAL}", "float low = {-3.4e38}, float zero = {0.0}",
    ),
    "scores that are capped before the mask": weighted(
        "d = Div (scores, cap)\nt = Tanh (d)\nc = Mul (t, cap)\nmasked = Where (attention_mask, c, fill)\n",
        "float fill = {-10000.0}, float cap = {30.0}",
    ),
    "a mask behind the softmax": graph(
        "c = Cast <to = 1> (attention_mask)\n" + SCORES + "w = Softmax <axis = -1> (scores)\nm = Mul (w, c)\n"
        "sum = ReduceSum <keepdims = 1> (m, axis)\nmore = Add (sum, eps)\n"
        "weights = Div (m, more)\ny = MatMul (weights, v)\n",
        constants="int64[1] axis = {3}, float eps = {0.000001}",
    ),
    "masks counted, then limited": graph(
        "c = Cast <to = 1> (attention_mask)\na = Sub (one, c)\nn = Not (causal)\nb = Cast <to = 1> (n)\n"
        "two = Add (a, b)\nhidden = Min (two, one)\nm = Mul (hidden, fill)\n" + SCORES
        + "masked = Add (scores, m)\n" + END,
        f"{MASK}, {CAUSAL}", "float fill = {-10000.0}, float one = {1.0}",
    ),
    "-inf in the future alone": graph(
        SCORES + "a = Where (causal, scores, inf)\nmasked = Where (attention_mask, a, low)\n" + END,
        f"{MASK}, {CAUSAL}", "float inf = {-inf}, float low = {-3.4e38}",
    ),
    "softmax that is no attention": HEAD + "g (float[b, s, 4] x) => (float[b, s, 2] y)\n"
    "<float[4, 2] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0}>\n{ z = MatMul (x, w)\n y = Softmax (z) }",
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_right_graphs_are_clean(name: str, tmp_path: Path) -> None:
    assert audited(RIGHT[name], tmp_path).findings == ()


def branches(body: str) -> str:
    """A graph whose layer lies in both branches of an If, as merged decoders have it; % stands for the branch."""
    parts = [
        f"{name}_branch = {name} () => (float[batch, 2, length, 4] {name}y) {{\n{body.replace('%', name)}}}"
        for name in ("then", "else")
    ]
    return graph(
        f"m = Where (attention_mask, zero, fill)\ny = If (cached) <{', '.join(parts)}>\n",
        f"{MASK}, {CAUSAL}, bool cached",
    )


BRANCH = (
    "%k = Transpose <perm = [0, 1, 3, 2]> (k)\n%s = MatMul (q, %k)\n{}"
    "%w = Softmax <axis = -1> (%a)\n%y = MatMul (%w, v)\n"
)


@pytest.mark.parametrize(
    ("masking", "rules"),
    [
        ("%a = Add (%s, m)\n", []),
        ("%c = Where (causal, %s, fill)\n%a = Add (%c, m)\n", ["summed-masks"] * 2),
        ("%a = Identity (%s)\n", ["unused-mask"] * 2),
    ],
)
def test_layers_in_branches(masking: str, rules: list[str], tmp_path: Path) -> None:
    report = audited(branches(BRANCH.format(masking)), tmp_path)
    assert [finding.rule for finding in report.findings] == rules and report.attentions == 2


@pytest.mark.parametrize(
    ("config", "given"),
    [
        ('{"local_attention": 8, "layer_types": ["sliding_attention"]}', 4),
        ('{"attention_chunk_size": 8, "layer_types": ["chunked_attention"]}', 8),
    ],
)
def test_windows_by_other_names(config: str, given: int, tmp_path: Path) -> None:
    """ModernBERT's, which reaches to both sides, and Llama 4's chunks."""
    seen = "c = And (attention_mask, causal)\n"
    near = "n = Squeeze (size)\nj = Range (zero0, n, one0)\nd = Less (j, limit)\nc0 = And (attention_mask, d)\n"
    stored = f"float low = {{-3.4028235e38}}, int64 zero0 = {{0}}, int64 one0 = {{1}}, int64 limit = {{{given}}}"
    end = "masked = Where (c, scores, low)\n" + END
    lacks = graph(SCORES + seen + end, f"{MASK}, {CAUSAL}", stored)
    size = "size = Shape <start = 2, end = 3> (q)\n"
    has = graph(SCORES + size + near + "c = And (c0, causal)\n" + end, f"{MASK}, {CAUSAL}", stored)
    assert [finding.rule for finding in audited(lacks, tmp_path, config).findings] == ["missing-window"]
    assert not audited(has, tmp_path, config).of("missing-window")
    other = config.replace('_attention"]', '_attention_of_another_kind"]')
    assert not audited(lacks, tmp_path, other).findings


@pytest.mark.parametrize(("step", "severities"), [("0.05", ["warning"]), ("0.1", []), ("1.5", ["error"])])
def test_masked_scores_that_are_cut_off(step: str, severities: list[str], tmp_path: Path) -> None:
    """255 steps of 0.05: a hidden key lies 12.75 below the best at the most."""
    report = audited(blocks("quantised-mask")[0].replace("1.3344405e36", step), tmp_path)
    assert [finding.severity for finding in report.of("quantised-mask")] == severities


SEVEN = "int64 zero0 = {0}, int64 one0 = {1}, int64 seven = {7}, int64[1] down = {0}, int64[1] across = {1}"
LOW = "float low = {-3.4028235e38}"
PLACES = (
    "j = Range (zero0, %s, one0)\nrow = Unsqueeze (j, down)\ncolumn = Unsqueeze (j, across)\n"
    "c = LessOrEqual (row, column)\n"
)
CHOSEN_BY = SCORES + "seen = And (attention_mask, c)\nmasked = Where (seen, scores, low)\n" + END


@pytest.mark.parametrize(
    ("masking", "inputs", "constants"),
    [
        (PLACES % "seven" + CHOSEN_BY, MASK, SEVEN),
        ("c = Slice (all, begin, end, axis)\n" + CHOSEN_BY, MASK,
         "bool[1, 8] all = {1, 1, 1, 1, 1, 1, 1, 0}, int64[1] begin = {0}, int64[1] end = {7}, int64[1] axis = {1}"),
        ("c = Gather <axis = 3> (attention_mask, places)\n" + SCORES + "masked = Where (c, scores, low)\n" + END, MASK,
         "int64[3] places = {0, 1, 2}"),
    ],
    ids=["counted to a stored length", "cut at a stored length", "stored places"],
)  # fmt: skip
def test_lengths_that_a_mask_is_computed_from(masking: str, inputs: str, constants: str, tmp_path: Path) -> None:
    """An exporter that folds nothing leaves the sample's length in front of the mask."""
    report = audited(graph(masking, inputs, f"{LOW}, {constants}"), tmp_path)
    assert {finding.rule for finding in report.errors} == {"baked-length"}


def test_a_length_that_is_computed_is_none_of_the_samples(tmp_path: Path) -> None:
    free = "size = Shape <start = 2, end = 3> (q)\nlength = Squeeze (size)\n" + PLACES % "length" + CHOSEN_BY
    assert audited(graph(free, MASK, f"{LOW}, {SEVEN}"), tmp_path).findings == ()


@pytest.mark.parametrize(("batch", "found"), [(1, ["baked-length"]), (0, [])])
def test_a_batch_of_one_that_joins_all_rows(batch: int, found: list[str], tmp_path: Path) -> None:
    """Heads of all rows' tokens one behind the other: each row attends the others, and nothing fails."""
    text = (
        f"{HEAD}g (float[batch, length, 8] x, int64[batch, length] attention_mask) => (float[rows, all, 8] y)\n"
        f"<{LOW}, int64[4] cut = {{{batch}, -1, 2, 4}}, int64[4] keys = {{{batch}, 1, 1, -1}}, "
        f"int64[3] whole = {{{batch}, -1, 8}}>\n{{\n"
        "heads = Reshape (x, cut)\nq = Transpose <perm = [0, 2, 1, 3]> (heads)\n"
        "kt = Transpose <perm = [0, 2, 3, 1]> (heads)\n"
        "real = Cast <to = 9> (attention_mask)\nseen = Reshape (real, keys)\nscores = MatMul (q, kt)\n"
        "masked = Where (seen, scores, low)\nw = Softmax <axis = -1> (masked)\nm = MatMul (w, q)\n"
        "t = Transpose <perm = [0, 2, 1, 3]> (m)\ny = Reshape (t, whole)\n}"
    )
    assert [finding.rule for finding in audited(text, tmp_path).errors] == found


def test_scores_that_are_rounded_before_the_mask_comes(tmp_path: Path) -> None:
    """Coarse steps of large scores are the quantisation's own affair."""
    text = blocks("quantised-mask")[1].replace("step = {0.05}", "step = {1.5}")
    assert audited(text, tmp_path).findings == ()
