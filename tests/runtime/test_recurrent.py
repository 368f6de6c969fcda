"""Decoders with recurrent states under transformers' ``generate``, and step by step."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from trueport.errors import RunError

NAMES = ("mamba", "qwen3_5", "falcon_h1")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("runtime")]


def _prompt(rows: int = 2, length: int = 7) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 99, (rows, length), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[-1, :3] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("options", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
def test_tokens(pair: Any, name: str, options: dict[str, Any]) -> None:
    original, artefact = pair(name)
    wanted = original.generate(**_prompt(), max_new_tokens=12, do_sample=False, **options)
    assert torch.equal(artefact.generate(**_prompt(), max_new_tokens=12, do_sample=False, **options), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_a_cache_goes_on(pair: Any, name: str) -> None:
    """The tokens so far are counted where no tensor of the state is as long as they are."""
    _, artefact = pair(name)
    whole = artefact.generate(**_prompt(1), max_new_tokens=10, min_new_tokens=10, do_sample=False)
    cache = artefact.new_cache()
    begun = artefact.generate(**_prompt(1), max_new_tokens=4, min_new_tokens=4, do_sample=False, past_key_values=cache)
    assert cache.get_seq_length() == begun.shape[1] - 1
    mask = torch.cat([_prompt(1)["attention_mask"], torch.ones(1, 4, dtype=torch.long)], 1)
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    again = artefact.generate(begun, attention_mask=mask, past_key_values=cache, **options)
    assert torch.equal(again, whole)


@pytest.mark.parametrize("name", NAMES)
def test_steps_with_and_without_a_mask(pair: Any, name: str) -> None:
    _, artefact = pair(name)
    ids = _prompt(1)["input_ids"]
    whole = artefact(input_ids=ids).logits
    state, pieces = None, []
    for start, end in ((0, 3), (3, 4), (4, 7)):
        outputs, state = artefact.step({"input_ids": ids[:, start:end]}, state)
        pieces.append(outputs["logits"])
    torch.testing.assert_close(torch.cat(pieces, 1), whole, rtol=1e-3, atol=1e-3)
    with pytest.raises(RunError, match="attention_mask"):
        artefact.step({"input_ids": ids[:, :1], "attention_mask": torch.ones(1, 3, dtype=torch.long)}, state)


@pytest.mark.parametrize("name", NAMES)
def test_a_step_cannot_be_undone(pair: Any, name: str) -> None:
    _, artefact = pair(name)
    cache = artefact.new_cache()
    artefact(**_prompt(1), past_key_values=cache)
    assert not cache.is_croppable
    with pytest.raises(RunError, match="cannot go back by 2 tokens"):
        cache.crop(-2)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        artefact.generate(**_prompt(1), assistant_model=artefact, max_new_tokens=3)
