"""Which of XNNPACK's operators a failed clause is owed to."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import trueport
from tests import zoo
from trueport.errors import ProofError
from trueport.targets.executorch import rewrites
from trueport.targets.executorch.blame import find_guilty

KERNELS = [f"K{index}" for index in range(12)]


@settings(max_examples=100, deadline=None)
@given(guilty=st.sets(st.sampled_from(KERNELS), min_size=1, max_size=3))
def test_the_guilty_are_found_whether_alone_or_together(guilty: set[str]):
    assert set(find_guilty(KERNELS, lambda kernels: guilty <= set(kernels))) == guilty


@pytest.mark.slow
def test_the_tanh_form_of_gelu_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """XNNPACK computes the erf form for both; without our rewrite the proof fails and says so."""
    pytest.importorskip("executorch")
    monkeypatch.setattr(rewrites, "_spell_gelu", lambda program: None)
    model = zoo.build("albert")
    assert "gelu" in model.config.hidden_act
    model.config.num_hidden_layers = 1
    model.config.hidden_act = "gelu_pytorch_tanh"
    model = type(model)(model.config).eval()
    zoo.amplify(model, seed=0)
    with pytest.raises(ProofError) as raised:
        trueport.export(model, tmp_path / "out", to="executorch", max_batch=3, max_length=40, tokenizer=None)
    mends = {clause.clause: clause.mend for clause in raised.value.proof.failures()}
    assert "XNNPACK's Gelu differs" in mends["shapes"]
    assert "--backend portable" in mends["shapes"]
