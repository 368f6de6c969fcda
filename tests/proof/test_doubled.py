"""The truth about a recurrence is computed in float64 throughout."""

from __future__ import annotations

import torch

from tests import zoo
from trueport.proof.doubled import doubled
from trueport.proof.inputs import Batch
from trueport.proof.reference import Reference


def test_casts_to_float32_stay_float64_in_recurrent_models_alone() -> None:
    x = torch.ones(3, dtype=torch.float64) / 3
    with doubled(zoo.build("mamba")):
        kept = (x.float(), x.to(torch.float32), x.to("cpu", torch.float32), x.type(torch.float32))
        kept += (
            torch.softmax(x, -1, dtype=torch.float32),
            x.sum(dtype=torch.float32),
            torch.zeros_like(x, dtype=torch.float32),
        )
        assert {tensor.dtype for tensor in kept} == {torch.float64} and torch.equal(kept[0], x)
        assert x.half().dtype == torch.float16 and x.half().float().dtype == torch.float32
        assert torch.ones(2).to(torch.float32).dtype == torch.float32 and x.long().dtype == torch.int64
    with doubled(zoo.build("llama")):
        assert x.float().dtype == torch.float32


def test_the_truth_is_nearer_to_a_finer_one_than_float32_is() -> None:
    """Against the recurrence token by token in float64; the kernel in float32 is off by its own rounding."""
    model = zoo.build("qwen3_5")
    ids = torch.randint(3, 99, (1, 70), generator=torch.Generator().manual_seed(0)).numpy()
    batch = Batch(ids, torch.ones(1, 70, dtype=torch.long).numpy())
    exact = Reference(model, "decoder", ["logits"]).exact()
    truth = exact.forward(batch)["logits"]
    with torch.no_grad():
        cast = exact.model(input_ids=torch.from_numpy(ids), use_cache=False).logits.numpy()
        with doubled(model):  # in steps, which are another kernel
            cache, steps = None, []
            for token in range(70):
                result = exact.model(
                    input_ids=torch.from_numpy(ids[:, token : token + 1]), past_key_values=cache, use_cache=True
                )
                cache = result.past_key_values
                steps.append(result.logits)
    finer = torch.cat(steps, 1).numpy()
    assert abs(truth - finer).max() < 1e-9 < abs(cast - finer).max()
