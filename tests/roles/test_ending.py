"""Models that want each row of tokens to end in certain ones."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import trueport
from tests import zoo
from trueport.card import snippet
from trueport.errors import CaptureError, TrueportError
from trueport.interface import Interface
from trueport.proof.inputs import Inputs, Limits, left
from trueport.roles import components


@pytest.mark.parametrize(
    ("name", "head", "ending"),
    [
        ("bart", "SequenceClassification", (2,)),
        ("t5", "SequenceClassification", (1,)),
        ("bert", "SequenceClassification", ()),
        ("bart", "QuestionAnswering", ()),
    ],
)
def test_what_a_model_asks_for_is_found(name: str, head: str, ending: tuple[int, ...]) -> None:
    (component,) = components(zoo.build(name, head=head))
    interface = component.interface
    assert interface.ending == ending == Interface.from_json(interface.to_json()).ending
    assert interface.dimension("sequence_length").minimum == max(len(ending), 1)


def test_a_model_that_asserts_what_no_ending_gives_is_told_so() -> None:
    """A Longformer that wants three separators and has three labels: it ended in a traceback."""
    with pytest.raises(CaptureError, match="does not run over 19 tokens itself: AssertionError"):
        components(zoo.build("longformer", head="QuestionAnswering"))


def test_drawn_rows_end_in_it_wherever_they_are_padded() -> None:
    inputs = Inputs(zoo.build("bart").config, "encoder", 1, Limits(), ending=(7, 8))
    mask = left(6, [0, 2, 5, 6])
    mask[0, -1] = 0
    ids = inputs.draw("case", mask).ids
    assert ids[0, 3:5].tolist() == ids[1, 4:].tolist() == [7, 8]
    assert ids[2, 4:].tolist() == ids[3, 4:].tolist() == [7, 8] and (ids[3, :4] == inputs.pad).all()
    assert inputs.scrambled("other", inputs.draw("case", mask)).ids[3, 4:].tolist() == [7, 8]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bart", "t5"])
def test_a_classifier_that_reads_at_the_end_is_proven(name: str, tmp_path: Path) -> None:
    """It was refused: its sample had no end."""
    model = zoo.build(name, head="SequenceClassification")
    artifact = trueport.export(model, tmp_path / "out", tokenizer=None)
    (ending,) = artifact.manifest["components"]["model"]["ending"]
    ids = torch.tensor(np.random.default_rng(0).integers(5, 99, (3, 11)))
    mask = torch.ones_like(ids)
    for row, length in enumerate((11, 4, 1)):
        ids[row, length - 1] = ending
        ids[row, length:], mask[row, length:] = model.config.pad_token_id, 0
    with torch.no_grad():
        wanted = model(input_ids=ids, attention_mask=mask).logits
    got = trueport.load(tmp_path / "out")(input_ids=ids, attention_mask=mask).logits
    torch.testing.assert_close(torch.as_tensor(got), wanted, rtol=1e-3, atol=1e-4)
    program = snippet(artifact.manifest)
    assert program is not None
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path / "out", check=True)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8-static", "auto"])
def test_it_is_calibrated_and_judged_on_rows_that_end(kind: str, tmp_path: Path) -> None:
    model = zoo.build("t5", head="SequenceClassification")
    try:
        assert trueport.export(model, tmp_path / "out", tokenizer=None, quantize=kind).verdict == "proven"
    except TrueportError as error:  # of random weights: by the gate alone, which was asked then
        assert "quality fails" in str(error)
