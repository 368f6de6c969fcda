"""Layers whose scores, masks or weights lie in the branches of an If, and what decides about it."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnx.parser
import pytest

from tests.graphs.audit.test_hidden_keys import IDS, REAL, STORED, plain
from tests.graphs.audit.test_rules import END, SCORES, audited, graph
from trueport.graphs.repair import repair

FLAG = f"{IDS}, bool flag"
ALL = "least = ReduceMin <keepdims = 0> (attention_mask)\nwhole = Cast <to = 9> (least)\n"
"""Whether nothing is hidden in the whole batch."""
DATA = "most = ReduceMax <keepdims = 0> (q)\nlarge = Greater (most, zero)\n"
KEPT, TURNED, NONE = "% = Where (row, {}, low)", "% = Where (row, low, {})", "% = Identity ({})"


def chosen(first: str, second: str, condition: str = "flag") -> str:
    """Scores that are masked in the branches of an If; % stands for what a branch gives."""
    parts = [
        f"{name}_branch = {name} () => (float[batch, 2, length, length] {name}m) "
        f"{{{body.format('scores').replace('%', name + 'm')}}}"
        for name, body in (("then", first), ("else", second))
    ]
    return f"{SCORES}masked = If ({condition}) <{', '.join(parts)}>\n{END}"


def layers(first: str, second: str, condition: str = "flag") -> str:
    """A whole layer in each branch."""
    parts = [
        f"{name}_branch = {name} () => (float[batch, 2, length, 4] {name}y) {{\n"
        f"{name}k = Transpose <perm = [0, 1, 3, 2]> (k)\n{name}s = MatMul (q, {name}k)\n"
        f"{body.format(name + 's').replace('%', name + 'm')}\n{name}w = Softmax <axis = -1> ({name}m)\n"
        f"{name}y = MatMul ({name}w, v)\n}}"
        for name, body in (("then", first), ("else", second))
    ]
    return f"y = If ({condition}) <{', '.join(parts)}>\n"


PRODUCTS = ", ".join(
    f"{name}_branch = {name} () => (float[batch, 2, length, length] {name}s) "
    f"{{{name}k = Transpose <perm = [0, 1, 3, 2]> (k)\n{name}s = MatMul (q, {name}k)}}"
    for name in ("then", "else")
)
WRONG = {
    "scores": (1, REAL + chosen(TURNED, TURNED), FLAG),
    "scores, by hidden states": (1, REAL + DATA + chosen(TURNED, TURNED, "large"), IDS),
    "scores, where anything is hidden": (1, REAL + ALL + chosen(NONE, TURNED, "whole"), IDS),
    "products": (1, f"{REAL}scores = If (flag) <{PRODUCTS}>\nmasked = Where (row, low, scores)\n{END}", FLAG),
    "layers, where anything is hidden": (2, REAL + ALL + layers(NONE, TURNED, "whole"), IDS),
}
RIGHT = {
    "scores": (1, REAL + chosen(KEPT, KEPT), FLAG),
    "scores, by hidden states": (1, REAL + DATA + chosen(KEPT, KEPT, "large"), IDS),
    "scores, where anything is hidden": (1, REAL + ALL + chosen(NONE, KEPT, "whole"), IDS),
    "products": (1, f"{REAL}scores = If (flag) <{PRODUCTS}>\nmasked = Where (row, scores, low)\n{END}", FLAG),
    "layers, where anything is hidden": (2, REAL + ALL + layers(NONE, KEPT, "whole"), IDS),
}
OPEN = {
    "a flag": (REAL + chosen(NONE, KEPT), FLAG),
    "hidden states": (REAL + DATA + chosen(TURNED, KEPT, "large"), IDS),
}


@pytest.mark.parametrize("name", WRONG)
def test_masks_in_branches_are_looked_into(name: str, tmp_path: Path) -> None:
    """Nothing was known of a layer with an If between its scores and its softmax."""
    layers_, body, inputs = WRONG[name]
    report = audited(plain(body, inputs), tmp_path)
    assert [(finding.rule, finding.severity) for finding in report.findings] == [("inverted-mask", "error")]
    assert report.attentions == layers_ and not report.unjudged


@pytest.mark.parametrize("name", RIGHT)
def test_right_masks_in_branches_are_left_alone(name: str, tmp_path: Path) -> None:
    """A layer without a mask, for batches in which nothing is hidden, is right."""
    layers_, body, inputs = RIGHT[name]
    report = audited(plain(body, inputs), tmp_path)
    assert report.findings == () and report.attentions == layers_ and not report.unjudged, report.text()


@pytest.mark.parametrize("name", OPEN)
def test_what_only_a_run_decides_is_not_known(name: str, tmp_path: Path) -> None:
    body, inputs = OPEN[name]
    report = audited(plain(body, inputs), tmp_path)
    assert report.findings == () and report.attentions == 1 and report.unjudged == 1


def test_a_layer_without_a_mask_that_padding_takes_is_found(tmp_path: Path) -> None:
    """The condition the wrong way round: the mask is left out where something is hidden."""
    report = audited(plain(REAL + ALL + layers(KEPT, NONE, "whole"), IDS), tmp_path)
    assert [finding.rule for finding in report.findings] == ["uneven-mask"]


def test_sums_in_branches_are_found_and_left(tmp_path: Path) -> None:
    added = "a = Where (row, zero, fill)\nb = Where (causal, zero, fill)\n"
    body = REAL + added + chosen("c% = Add ({}, a)\n% = Add (c%, b)", "% = Add ({}, a)")
    text = graph(body, f"{FLAG}, bool[1, 1, length, length] causal", STORED)
    assert [finding.rule for finding in audited(text, tmp_path).findings] == ["summed-masks"]
    path = tmp_path / "graph.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    done = repair(path, tmp_path / "fixed.onnx")
    assert not done.mended and "in the branch of an If" in done.left["weights"]
