"""Scores without bounds: a proof allows rounding, and never so much that anything passes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.graphs.audit.test_rules import HEAD
from tests.graphs.repair.test_repair import mended, saved
from trueport.errors import ProofError, RunError
from trueport.graphs.repair import prove as proving
from trueport.graphs.repair import repair

GIVEN = (
    f"{HEAD}g (uint8[batch, length, 16] x, uint8[16, 48] w, float[48] b, float scale, float scale_w, "
    "int32[batch, length] attention_mask%s) => (float[batch, length, 16] y)\n{\n"
    "[at] y = com.microsoft.QAttention <num_heads = 2, unidirectional = 1> (x, w, b, scale, scale_w, attention_mask%s)\n}"
)
"""Integers and scales that are inputs: scores of millions."""
PLAIN = GIVEN % ("", "")


def test_what_is_allowed_has_an_end(tmp_path: Path) -> None:
    done = mended(saved(PLAIN, tmp_path))
    assert done.proof is not None
    (layer,) = done.proof.layers
    assert layer.score > 1e5 and layer.allowed <= 0.01
    assert layer.wrong_before > 0 and (done.proof.unchanged is None or done.proof.unchanged < 0.01)


def test_a_wrong_repair_is_not_proven_by_its_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    right = proving.expected

    def wrong(*arguments: object) -> object:
        wanted = right(*arguments)  # type: ignore[arg-type]
        return wanted._replace(output=wanted.output[..., ::-1])

    monkeypatch.setattr(proving, "expected", wrong)
    with pytest.raises(ProofError, match="precision float64"):
        repair(saved(PLAIN, tmp_path), tmp_path / "fixed.onnx")
    assert not (tmp_path / "fixed.onnx").exists()


def test_an_operator_that_does_not_run_is_one_sentence(tmp_path: Path) -> None:
    """ONNX Runtime takes a past only with an output for what follows it."""
    path = saved(GIVEN % (", float[2, batch, 2, past, 8] past", ', "", "", past'), tmp_path)
    with pytest.raises(RunError, match="at, as it is, does not run"):
        repair(path, tmp_path / "fixed.onnx")
