"""Programs with scales found by calibration."""

from __future__ import annotations

import pytest
import torch

from tests import zoo
from trueport.capture import capture
from trueport.proof.calibration import Original
from trueport.targets.executorch import ExecutorchTarget

pytest.importorskip("executorch")


@pytest.mark.slow
def test_an_encoders_program_holds_the_weights_that_it_reads_alone():
    """It makes the decoder's cross keys and values, and held the whole decoder for it, a second time in the file."""
    from trueport.targets.executorch.calibrate import calibrated

    model = zoo.build("t5")
    parts = ExecutorchTarget().components(model, untrained=(), options={"quantize": "int8"})
    made = calibrated([capture(p) for p in parts], {p.name: p for p in parts}, Original(model.config, "seq2seq"))
    stored = [t for p in made if p.name == "encoder" for t in p.program.state_dict.values() if t.dtype == torch.int8]
    read = [
        module.weight
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
        and (name.startswith("encoder.") or name.endswith((".EncDecAttention.k", ".EncDecAttention.v")))
    ]
    assert sorted(tuple(t.shape) for t in stored) == sorted(tuple(t.shape) for t in read)
