"""Deep graphs: what an audit costs grows with the layers, not with their square."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.graphs.audit.test_rules import HEAD, audited
from trueport.graphs.audit import view

LAYERS = 120


def stacked(bias: str) -> str:
    """``LAYERS`` layers, one behind the other, that all add the same ``bias`` of the mask."""
    layer = (
        "t{i} = Transpose <perm = [0, 2, 1]> (x{i})\ns{i} = MatMul (x{i}, t{i})\nm{i} = Add (s{i}, bias)\n"
        "w{i} = Softmax <axis = -1> (m{i})\nc{i} = MatMul (w{i}, x{i})\nx{j} = Add (c{i}, x{i})\n"
    )
    return (
        f"{HEAD}g (float[batch, length, 4] x0, int64[batch, length] attention_mask)\n"
        f"=> (float[batch, length, 4] x{LAYERS})\n"
        "<float low = {-3.4028235e38}, float zero = {0.0}, float fill = {-10000.0}, int64[1] keys = {1}, "
        "int64[1] queries = {2}>\n{\nreal = Cast <to = 9> (attention_mask)\n"
        f"{bias}{''.join(layer.format(i=i, j=i + 1) for i in range(LAYERS))}}}"
    )


ROW = "row = Unsqueeze (real, keys)\n"
MASKS = {
    "right": ("", f"{ROW}bias = Where (row, zero, low)\n"),
    "summed": ("summed-masks", f"{ROW}once = Where (row, zero, fill)\nbias = Add (once, once)\n"),
    "on the queries": ("query-axis-mask", "row = Unsqueeze (real, queries)\nbias = Where (row, zero, low)\n"),
}


@pytest.mark.parametrize("name", MASKS)
def test_every_layer_costs_alike(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand layers were refused as too tangled: a rule walked through the whole graph anew for each of them."""
    rule, bias = MASKS[name]
    monkeypatch.setattr(view, "PATIENCE", 40 * LAYERS)
    report = audited(stacked(bias), tmp_path)
    assert report.attentions == LAYERS and not report.unjudged
    assert {finding.rule for finding in report.findings} == ({rule} if rule else set())
    assert len(report.findings) == (LAYERS if rule else 0)
