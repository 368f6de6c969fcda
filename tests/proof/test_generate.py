"""What `generate` excuses: tokens that rounding alone changes in the original itself, and nothing else."""

from __future__ import annotations

import copy
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from tests import zoo
from trueport.cache_names import NAMES
from trueport.proof.clauses import generate as clause
from trueport.proof.inputs import Batch, left
from trueport.proof.tolerance import Tolerance

FLOOR = 1e-3
OPTIONS = {"max_new_tokens": 6, "min_new_tokens": 3, "use_cache": True, "num_beams": 3, "do_sample": False}


def stub(model: torch.nn.Module, runnable: torch.nn.Module) -> Any:
    def forward(asked: Any, batch: Batch) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {"logits": asked(torch.from_numpy(batch.ids), torch.from_numpy(batch.mask)).logits.numpy()}

    original = SimpleNamespace(model=model, forward=partial(forward, model))
    return SimpleNamespace(
        role="decoder",
        subject=SimpleNamespace(forward=partial(forward, runnable)),
        own=original,
        exact=original,
        runnable=runnable,
        quantised=None,
        tolerance=Tolerance({"logits": FLOOR}, FLOOR, 10.0, "given"),
    )


@pytest.fixture(scope="module")
def llama() -> torch.nn.Module:
    return zoo.build("llama").eval()


def prompts() -> Batch:
    ids, mask = np.random.default_rng(5).integers(3, 99, (6, 7)), left(7, [0, 4, 6, 0, 4, 6])
    return Batch(ids, mask)


def moved(model: torch.nn.Module, size: float, seed: int) -> torch.nn.Module:
    """A copy whose logits lie about ``size`` of their scale beside the model's."""
    copied = copy.deepcopy(model)
    torch.manual_seed(seed)
    with torch.no_grad():
        head = copied.get_output_embeddings().weight
        head += size * head.abs().mean() * torch.randn_like(head)
    return copied


def test_tokens_that_the_budget_explains_are_ties(llama: torch.nn.Module) -> None:
    twins = copy.deepcopy(llama)
    with torch.no_grad():  # every token has a twin that scores the same: the best is a tie at every step
        head = twins.get_output_embeddings().weight
        head[1::2] = head[: len(head) - 1 : 2]
    differed = 0
    for seed in range(4):
        found = clause._one(stub(twins, moved(twins, FLOOR, seed)), prompts(), OPTIONS)
        differed += bool(found.note)
        assert not found.error, found
    assert differed, "nothing was tied: the test asked nothing"


def test_what_the_original_cannot_generate_is_left_out() -> None:
    """Three beams find no six tokens to go on with where the vocabulary has one."""
    config = LlamaConfig(
        vocab_size=1, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8,
        pad_token_id=None, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    case = clause._one(stub(model, model), Batch(np.zeros((2, 3), dtype=np.int64), np.ones((2, 3), np.int64)), OPTIONS)
    assert case.left_out and case.note.startswith("the original itself does not generate so: ")


def test_logits_far_from_the_originals_are_no_tie(llama: torch.nn.Module) -> None:
    assert clause._one(stub(llama, moved(llama, 0.5, 0)), prompts(), OPTIONS).error


def test_beams_that_keep_the_wrong_cache_are_no_tie(llama: torch.nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = copy.deepcopy(llama)
    asked, right, generate = stub(llama, wrong), DynamicCache.reorder_cache, clause.generate

    def switching(model: Any, *rest: Any) -> np.ndarray:
        monkeypatch.setattr(DynamicCache, "reorder_cache", (lambda *_: None) if model is wrong else right)
        return generate(model, *rest)

    monkeypatch.setattr(clause, "generate", switching)
    assert clause._one(asked, prompts(), OPTIONS).error


@pytest.mark.parametrize("name", NAMES)
def test_an_original_that_calls_its_cache_otherwise_generates_without(llama: torch.nn.Module, name: str) -> None:
    """Two of the names are not the one by which the installed transformers hands the cache on."""
    renamed = zoo.with_cache_name(copy.deepcopy(llama), name)
    assert (clause.generate(renamed, prompts(), OPTIONS) == clause.generate(llama, prompts(), OPTIONS)).all()


def test_an_original_whose_cache_contradicts_it_is_its_own_without() -> None:
    """transformers' cache for a window of one token keeps them all, and no mask hides them."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(vocab_size=99, num_key_value_heads=2, sliding_window=1, **sizes)).eval()
    zoo.amplify(model, seed=0)
    right = zoo.with_cache_name(copy.deepcopy(model), "cache")  # it generates without one
    asked = stub(model, right)
    assert clause.differing_rows(*(clause.generate(each, prompts(), OPTIONS) for each in (right, model)))
    found = clause._one(asked, prompts(), OPTIONS)
    assert not found.failed and "the original's own cache changes its tokens" in found.note
    assert clause._one(stub(model, moved(right, 0.5, 1)), prompts(), OPTIONS).failed
