"""Repairs of every kind of layer, proven by themselves and looked at from outside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnxruntime
import pytest

from tests.graphs.audit.test_hidden_keys import RIGHT, WRONG, plain
from tests.graphs.audit.test_report import command
from tests.graphs.audit.test_rules import BRANCH, CAUSAL, END, HEAD, MASK, SCORES, VARIANTS, blocks, branches, graph
from trueport.attention import reference
from trueport.errors import ProofError, TrueportError
from trueport.graphs.audit.rules import RULES
from trueport.graphs.repair import Repair, repair
from trueport.graphs.repair import prove as proving


def saved(text: str, folder: Path) -> Path:
    path = folder / "graph.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def mended(path: Path, **options: object) -> Repair:
    """The repair, which must be proven and leave nothing that it could mend."""
    done = repair(path, path.with_name("fixed.onnx"), **options)  # type: ignore[arg-type]
    assert done.proof is not None and done.proof.proven, done.text()
    assert done.after is not None and done.after.clean and not done.left, done.text()
    assert not [file for file in path.parent.iterdir() if file.name.startswith(".")]
    return done


def run(path: Path, **feeds: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path)).run(None, feeds)[0]


@pytest.mark.parametrize("rows", ["uniform", "zeros"])
@pytest.mark.parametrize("rule", [rule.id for rule in RULES if rule.repairable])
def test_the_pages_graphs(rule: str, rows: str, tmp_path: Path) -> None:
    done = mended(saved(blocks(rule)[0], tmp_path), rows=rows)
    assert {finding.rule for finding in done.mended} == {rule}
    assert sum(layer.wrong_before for layer in done.proof.layers) > 0


SUMS = (
    "chosen, then added",
    "added to each other",
    "taken off",
    "divided",
    "inside a bias",
    "product with -inf",
    "-inf bias on MultiHeadAttention",
    "a mask and a bias of MultiHeadAttention",
)


@pytest.mark.parametrize("rows", ["uniform", "zeros"])
@pytest.mark.parametrize("name", SUMS)
def test_other_spellings(name: str, rows: str, tmp_path: Path) -> None:
    mended(saved(VARIANTS[name][1], tmp_path), rows=rows)


def test_summed_masks_equal_the_reference(tmp_path: Path) -> None:
    """Seen from outside: queries, keys, values and masks in, the reference's numbers out, scores of 1e5 included."""
    path = saved(VARIANTS["added to each other"][1], tmp_path)
    mended(path, rows="uniform")
    rng = np.random.default_rng(0)
    for gain in (1.0, 300.0):
        q, k, v = (rng.standard_normal((3, 2, 7, 4)).astype(np.float32) for _ in range(3))
        q, k = q * np.float32(gain), k * np.float32(gain)
        mask = rng.random((3, 1, 1, 7)) < 0.5
        causal = np.tril(np.ones((1, 1, 7, 7), bool))
        feeds = {"q": q, "k": k, "v": v, "attention_mask": mask, "causal": causal}
        right = reference(q, k, v, mask=mask & causal, rows="uniform", scale=1.0)
        wrong = np.abs(run(path, **feeds) - right).max()
        error = np.abs(run(tmp_path / "fixed.onnx", **feeds) - right).max()
        assert wrong > 0.1
        assert error < 1e-5 if gain == 1 else error < 0.1


def attention(inputs: str, call: str, constants: str = "", out: str = "float[batch, length, 4] y") -> str:
    """A graph of one com.microsoft operator on x (batch, length, 4), with weights for 2 heads."""
    numbers = np.random.default_rng(0).standard_normal(60).round(3).tolist()
    w, b = (", ".join(map(str, part)) for part in (numbers[:48], numbers[48:]))
    stored = f"float[4, 12] w = {{{w}}}, float[12] c = {{{b}}}" + (f", {constants}" if constants else "")
    return f"{HEAD.replace('23', '14')}g (float[batch, length, 4] x, {inputs}) => ({out})\n<{stored}>\n{{ {call} }}"


OPERATORS = {
    "unidirectional": attention(
        "int32[batch, length] attention_mask",
        "y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, c, attention_mask)",
    ),
    "three axes": attention(
        "int32[batch, length, length] attention_mask",
        "y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, c, attention_mask)",
    ),
    "lengths": attention(
        "int32[batch] mask_index", "y = com.microsoft.Attention <num_heads = 2> (x, w, c, mask_index)"
    ),
    "scale": attention(
        "int32[batch, length] attention_mask",
        "y = com.microsoft.Attention <num_heads = 2, unidirectional = 1, scale = 0.3> (x, w, c, attention_mask)",
    ),
    "past": attention(
        "int32[batch, total_length] attention_mask, float[2, batch, 2, past_length, 2] past",
        "y, present = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, c, attention_mask, past)",
        out="float[batch, length, 4] y, float[2, batch, 2, total_length, 2] present",
    ),
    "bias": attention(
        "int32[batch, length] attention_mask, float[1, 2, length, length] bias",
        'y = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, c, attention_mask, "", bias)',
    ),
    "cross": attention(
        "float[batch, source, 4] s, int32[batch, source] encoder_attention_mask",
        "y = com.microsoft.MultiHeadAttention <num_heads = 2, mask_filter_value = -inf> "
        "(x, s, s, c, encoder_attention_mask)",
    ),
    "lengths of a mask": attention(
        "int64[batch, length] attention_mask",
        "n = ReduceSum <keepdims = 0> (attention_mask, axis)\nm = Cast <to = 6> (n)\n"
        "y = com.microsoft.MultiHeadAttention <num_heads = 2> (x, x, x, c, m)",
        "int64[1] axis = {1}",
    ),
}


@pytest.mark.parametrize("rows", ["uniform", "zeros"])
@pytest.mark.parametrize("name", OPERATORS)
def test_operators(name: str, rows: str, tmp_path: Path) -> None:
    path = saved(OPERATORS[name], tmp_path)
    done = mended(path, rows=rows)
    assert not any(node.domain == "com.microsoft" for node in onnx.load(tmp_path / "fixed.onnx").graph.node)
    names = [[value.name for value in onnx.load(file).graph.output] for file in (path, tmp_path / "fixed.onnx")]
    assert names[0] == names[1]
    assert done.proof.unchanged is not None and done.proof.unchanged < 1e-5
    assert len(done.proof.layers) == 1


STANDARD_HEAD = (
    HEAD + "g (float[batch, length, %s] q, float[batch, length, 4] k, int64[batch, %s] attention_mask%s) => (%s)\n"
)
STANDARD_MASK = (
    "{\nc = Cast <to = 1> (attention_mask)\ninv = Sub (one, c)\nm = Mul (inv, fill)\nrow = Unsqueeze (m, axes)\n"
    "z = Shape <start = 1, end = 2> (q)\nshape = Concat <axis = 0> (i, i, z, i)\nwide = Expand (row, shape)\n"
)
STANDARD_STORED = (
    "<float one = {1.0}, float zero = {0.0}, float fill = {-10.0}, int64[2] axes = {1, 2}, int64[1] i = {1}, "
    "int64 i0 = {0}, int64 i1 = {1}>\n"
)
TRIANGLE = (
    "size = Squeeze (z)\nj = Range (i0, size, i1)\ncolumn = Unsqueeze (j, i)\n"
    "after = Greater (j, column)\nd = Where (after, low, zero)\nboth = Add (wide, d)\n"
)
STANDARD = {
    "a weak fill and a past": (
        STANDARD_HEAD % ("4", "total_length", ", float[batch, 2, past_length, 2] past_k, "
                         "float[batch, 2, past_length, 2] past_v",
                         "float[batch, length, 4] y, float[batch, 2, total_length, 2] nk, "
                         "float[batch, 2, total_length, 2] nv")
        + STANDARD_STORED.replace("-10.0", "-25.0") + STANDARD_MASK
        + "y, nk, nv = Attention <q_num_heads = 2, kv_num_heads = 2, is_causal = 1, scale = 9.0> "
        "(q, k, k, wide, past_k, past_v)\n}"
    ),
    "a sum, a bias and grouped heads": (
        STANDARD_HEAD % ("8", "length", ", float[1, 4, length, length] bias", "float[batch, length, 8] y")
        + STANDARD_STORED.replace("-10.0", "-10000.0").replace("<float", "<float low = {-10000.0}, float", 1)
        + STANDARD_MASK + TRIANGLE
        + "all = Add (bias, both)\ny = Attention <q_num_heads = 4, kv_num_heads = 2> (q, k, k, all)\n}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STANDARD)
def test_the_mask_of_onnx_attention(name: str, tmp_path: Path) -> None:
    """The operator stays; what its mask hides gets -inf. Rows without keys are zeros, or it is left and said so."""
    path = saved(STANDARD[name], tmp_path)
    done = mended(path, rows="zeros")
    assert sum(layer.wrong_before for layer in done.proof.layers) > 0 and len(done.proof.layers) == 1
    assert "Attention" in [node.op_type for node in onnx.load(tmp_path / "fixed.onnx").graph.node]
    left = repair(path, tmp_path / "uniform.onnx")
    assert not left.mended and ["--rows zeros" in reason for reason in left.left.values()] == [True]


def test_lengths_become_the_raw_mask(tmp_path: Path) -> None:
    """Left padding and holes count from then on."""
    path = saved(OPERATORS["lengths of a mask"], tmp_path)
    mended(path)
    x = np.random.default_rng(0).standard_normal((2, 7, 4)).astype(np.float32)
    mask = np.array([[0, 0, 1, 1, 1, 1, 1], [1, 1, 0, 1, 1, 0, 1]])
    out = run(tmp_path / "fixed.onnx", x=x, attention_mask=mask)
    moved = x.copy()
    moved[mask == 0] = 9.0
    again = run(tmp_path / "fixed.onnx", x=moved, attention_mask=mask)
    np.testing.assert_allclose(out[mask == 1], again[mask == 1], atol=1e-6)
    assert np.abs(run(path, x=moved, attention_mask=mask) - run(path, x=x, attention_mask=mask))[mask == 1].max() > 0.1


def test_a_right_graph_is_copied(tmp_path: Path) -> None:
    done = repair(saved(blocks("summed-masks")[1], tmp_path), tmp_path / "fixed.onnx")
    assert done.mended == () and done.proof is None and (tmp_path / "fixed.onnx").is_file()


def test_an_input_that_no_memory_holds_is_named(tmp_path: Path) -> None:
    path = saved(
        VARIANTS["added to each other"][1].replace(", bool[1, 1", f", float[{1 << 40}] other, bool[1, 1"), tmp_path
    )
    with pytest.raises(TrueportError, match="the input other has 1,099,511,627,776 elements"):
        repair(path, tmp_path / "fixed.onnx")
    assert [file.name for file in tmp_path.iterdir()] == ["graph.onnx"]


def test_what_cannot_be_mended_is_said(tmp_path: Path) -> None:
    """Packed queries, keys and values stay as they are; so does what lies in a branch."""
    packed = HEAD + (
        "g (float[b, s, 2, 3, 2] qkv, int32[b] mask_index) => (float[b, s, 4] y)\n"
        "{ [packed] y = com.microsoft.MultiHeadAttention <num_heads = 2> (qkv, \"\", \"\", \"\", mask_index) }"
    )  # fmt: skip
    done = repair(saved(packed, tmp_path), tmp_path / "fixed.onnx")
    assert "packed" in done.left and done.after is not None and done.after.errors


ROW = "real = Cast <to = 9> (attention_mask)\nrow = Unsqueeze (real, keys)\n"
TWICE = "a = Where (row, zero, fill)\nb = Add (a, a)\n" + SCORES + "masked = Add (scores, b)\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (WRONG["summed before a softmax that is spelled out"][1], "spelled out"),
        (WRONG["summed in a loop"][1], "body of a Loop"),
        (plain(ROW + TWICE.replace("masked =", "m =") + "masked = Where (row, m, zero)\n" + END), "plain numbers"),
        (plain(ROW + TWICE + "w = Softmax <axis = 2> (masked)\ny = MatMul (w, v)\n"), "last axis"),
        (plain(ROW.replace("(real, keys)", "<axes = [1, 2]> (real)") + TWICE
               + "w = Softmax (masked)\ny = MatMul (w, v)\n").replace('"" : 23', '"" : 11'), "last axis"),
    ],
)  # fmt: skip
def test_layers_of_other_forms_are_left(text: str, words: str, tmp_path: Path) -> None:
    done = repair(saved(text, tmp_path), tmp_path / "fixed.onnx")
    (reason,) = done.left.values()
    assert words in reason and reason in done.text() and done.proof is None


@pytest.mark.parametrize(
    "rule", sorted({rule for rule, _ in WRONG.values()} & {r.id for r in RULES if not r.repairable})
)
def test_what_no_repair_mends_is_said(rule: str, tmp_path: Path) -> None:
    """One sentence for each finding; the graph is a copy of what it was."""
    path = saved(blocks(rule)[0], tmp_path)
    done = repair(path, tmp_path / "fixed.onnx")
    assert not done.mended and done.proof is None
    assert f"not mended: error {rule} at at_fault" in done.text() and "does not mend this" in done.text()


SUMMED = plain(ROW + TWICE + END)
FOLDED = RIGHT["heads in the batch"].replace(
    "masked = Where (flat, scores, low)", "a = Where (flat, zero, fill)\nb = Add (a, a)\nmasked = Add (scores, b)"
)
FIXED = "{} = com.microsoft.Attention <num_heads = 2> (x, w, c, mask_index)"


@pytest.mark.parametrize(
    "text",
    [
        FOLDED,
        SUMMED.replace("batch", "2").replace("length", "16"),
        attention("int32[2] mask_index", FIXED.format("y")).replace("batch", "2"),
        attention("int32[4] mask_index", FIXED.format("y")).replace("batch", "2"),
    ],
    ids=["heads in the batch", "fixed sizes", "lengths of two rows", "starts and ends of two rows"],
)
def test_sizes_that_belong_together(text: str, tmp_path: Path) -> None:
    """The proof's inputs fit the graph."""
    mended(saved(text, tmp_path))


def test_axes_of_size_minus_one_are_of_any_length(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(OPERATORS["unidirectional"])
    for value in (*model.graph.input, *model.graph.output):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param:
                axis.dim_value = -1
    onnx.save(model, tmp_path / "graph.onnx")
    mended(tmp_path / "graph.onnx")


def test_attention_without_a_bias_is_left(tmp_path: Path) -> None:
    """ONNX Runtime 1.31's ends the process that runs it: the proof cannot."""
    path = saved(OPERATORS["unidirectional"].replace("(x, w, c,", '(x, w, "",'), tmp_path)
    (reason,) = repair(path, tmp_path / "fixed.onnx").left.values()
    assert "no bias" in reason


def test_an_inverted_mask_stays_said_where_sums_are_mended(tmp_path: Path) -> None:
    """The proof is about how masks are combined, not about what they mean."""
    done = repair(saved(plain(ROW.replace("row =", "other =") + "row = Not (other)\n" + TWICE + END), tmp_path),
                  tmp_path / "fixed.onnx")  # fmt: skip
    assert [finding.rule for finding in done.mended] == ["summed-masks"]
    assert "not mended: error inverted-mask" in done.text()


def test_a_repair_that_is_not_proven_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proving, "RELATIVE", 0.0)
    monkeypatch.setattr(proving, "EXACT_TO", 1e-30)
    path = saved(OPERATORS["unidirectional"], tmp_path)
    monkeypatch.setattr(proving, "_errors", lambda got, wanted: np.full(got.shape[:-1], 1.0))
    with pytest.raises(ProofError, match="Not proven"):
        repair(path, tmp_path / "fixed.onnx")
    assert {file.name for file in tmp_path.iterdir()} == {"graph.onnx"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rows": "as-model"}, "no policy"),
        ({"precision": "float8"}, "no precision"),
        ({"out": "graph.onnx"}, "the graph itself"),
        ({"out": "absent/x.onnx"}, "cannot be written"),
        ({"out": "there.onnx"}, "--force"),
        ({"out": "folder.onnx", "force": True}, "cannot be written"),
    ],
)
def test_wrong_options(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_bytes(b"mine")
    (tmp_path / "folder.onnx_data").mkdir()
    path = saved(blocks("summed-masks")[0], tmp_path)
    with pytest.raises(TrueportError, match=words):
        repair(path, tmp_path / options.pop("out", "fixed.onnx"), **options)
    assert (tmp_path / "there.onnx").read_bytes() == b"mine"


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = saved(blocks("summed-masks")[0], tmp_path)
    out = tmp_path / "fixed.onnx"
    assert command(monkeypatch, "repair", path, "-o", out, "--json", tmp_path / "done.json") == 0
    said = capsys.readouterr().out
    assert "mended summed-masks at at_fault" in said and "Proven over 64 masks of 8 families" in said
    content = json.loads((tmp_path / "done.json").read_text())
    assert content["proof"]["proven"] and content["mended"][0]["rule"] == "summed-masks"
    assert command(monkeypatch, "audit", out) == 0
    assert command(monkeypatch, "repair", path, "-o", out) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('y, "", "", qk = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> (x, x, x, c, attention_mask)',
         "scores are read too"),
        ('y, pk, pv = com.microsoft.MultiHeadAttention <num_heads = 2, unidirectional = 1> '
         '(x, x, x, c, attention_mask, "", past_k, past_v, past_sequence_length)', "past_sequence_length"),
    ],
)  # fmt: skip
def test_what_an_operator_gives_or_takes_besides(text: str, words: str, tmp_path: Path) -> None:
    inputs, out = "int32[batch, length] attention_mask", "float[batch, length, 4] y"
    if "past" in text:
        cache = "float[batch, 2, room, 2] "
        inputs = f"int32[batch, room] attention_mask, {cache}past_k, {cache}past_v, int32[1] past_sequence_length"
        out += f", {cache}pk, {cache}pv"
    else:
        out += ", float[batch, 2, length, length] qk"
    done = repair(saved(attention(inputs, text, out=out), tmp_path), tmp_path / "fixed.onnx")
    (reason,) = done.left.values()
    assert words in reason and done.proof is None


def test_layers_in_branches_are_left(tmp_path: Path) -> None:
    text = branches(BRANCH.format("%c = Where (causal, %s, fill)\n%a = Add (%c, m)\n"))
    done = repair(saved(text, tmp_path), tmp_path / "fixed.onnx")
    assert len(done.left) == 2 and all("branch" in reason for reason in done.left.values()) and done.proof is None


def test_layers_that_share_a_mask(tmp_path: Path) -> None:
    """Two layers behind one summed mask: both are mended, from the same terms."""
    text = graph(
        "a = Where (causal, zero, fill)\nm = Where (attention_mask, zero, fill)\nboth = Add (a, m)\n"
        + SCORES + "masked = Add (scores, both)\nw1 = Softmax <axis = -1> (masked)\nx = MatMul (w1, v)\n"
        + SCORES.replace("kt", "kt2").replace("(k)", "(x)").replace("scores", "scores2")
        + END.replace("masked", "masked2").replace("weights", "w2").join(["masked2 = Add (scores2, both)\n", ""]),
        f"{MASK}, {CAUSAL}",
    )  # fmt: skip
    done = mended(saved(text, tmp_path))
    assert done.proof is not None and len(done.proof.layers) == 2


@pytest.mark.parametrize("flag", ["use_attention_mask", "use_causal_mask"])
def test_a_flag_that_is_called_a_mask(flag: str, tmp_path: Path) -> None:
    """An input without axes was a traceback."""
    text = graph(
        f"a0 = Where (causal, zero, fill)\nm = Where (attention_mask, zero, fill)\na = Where ({flag}, a0, zero)\n"
        + SCORES + "one = Add (scores, a)\nmasked = Add (one, m)\n" + END,
        f"{MASK}, {CAUSAL}, bool {flag}",
    )  # fmt: skip
    done = repair(saved(text, tmp_path), tmp_path / "fixed.onnx")
    assert done.proof is not None and done.proof.proven and [f.rule for f in done.mended] == ["summed-masks"]


def test_a_mask_with_queries_beside_a_past(tmp_path: Path) -> None:
    """The proof made up as many queries as keys, which the mended graph refused."""
    past = "float[2, batch, 2, past_length, 4] past"
    text = (
        f"{HEAD}g (float[batch, length, 8] x, int32[batch, length, total] attention_mask, {past}) "
        "=> (float[batch, length, 8] y, float[2, batch, 2, total, 4] present)\n"
        f"<float[8, 24] w = {{{', '.join(f'{(i * 7 % 11 - 5) / 10}' for i in range(192))}}}, "
        f"float[24] b = {{{', '.join(['0.1'] * 24)}}}>\n"
        "{ y, present = com.microsoft.Attention <num_heads = 2, unidirectional = 1> (x, w, b, attention_mask, past) }"
    )
    assert {finding.rule for finding in mended(saved(text, tmp_path)).mended} == {"summed-masks"}


def test_strings_are_not_made_up(tmp_path: Path) -> None:
    text = graph(
        "a = Where (causal, zero, fill)\nm = Where (attention_mask, zero, fill)\nsum = Add (a, m)\n" + SCORES
        + "masked = Add (scores, sum)\n" + END, f"{MASK}, {CAUSAL}, string[batch] names",
    )  # fmt: skip
    path = saved(text, tmp_path)
    with pytest.raises(TrueportError, match="names is of strings"):
        repair(path, tmp_path / "fixed.onnx")
    assert repair(path, tmp_path / "fixed.onnx", proof=False).mended
