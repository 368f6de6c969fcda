"""What a quantised artefact is judged by: the gate alone for its weights, itself for its masks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests import zoo
from tests.conftest import EXAMPLES
from trueport.interface import Dimension, Interface, Tensor
from trueport.proof.clauses.quality import distributions, longest
from trueport.proof.memory import Memory, TooLargeError
from trueport.proof.quantised import Quantised
from trueport.proof.run import asked_of, prove
from trueport.roles.windows import windows
from trueport.targets.executorch.quantize import GATES

Feeds = dict[str, np.ndarray]
SHAPE = ("batch_size", "sequence_length")


class Runtime:
    """A session that runs a PyTorch model, with a fault in what it is fed."""

    path = Path("model.pte")

    def __init__(self, model: Any, spoil: Callable[[Feeds], Feeds]) -> None:
        self.model, self.spoil = model, spoil
        names = ("input_ids", "attention_mask", "token_type_ids")
        self.interface = Interface(
            tuple(Tensor(name, "int64", SHAPE) for name in names),
            (Tensor("logits", "float32", ("batch_size", model.config.num_labels)),),
            (Dimension("batch_size", 1, 4), Dimension("sequence_length", 1, 48)),
        )

    def run(self, feeds: Mapping[str, np.ndarray]) -> Feeds:
        given = {name: torch.from_numpy(array) for name, array in self.spoil(dict(feeds)).items()}
        with torch.no_grad():
            return {"logits": self.model(**given).logits.numpy()}


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForSequenceClassification.from_pretrained(EXAMPLES / "bert-sentiment").eval()


def coarse(model: Any, levels: int) -> Any:
    """A copy whose linear weights take so many values on each side of zero."""
    copied = type(model)(model.config).eval()
    copied.load_state_dict(model.state_dict())
    with torch.no_grad():
        for module in copied.modules():
            if isinstance(module, torch.nn.Linear):
                step = module.weight.abs().amax(dim=1, keepdim=True) / levels
                module.weight.copy_((module.weight / step).round() * step)
    return copied


def failed(
    model: Any,
    run: Any,
    kind: str | None,
    spoil: Callable[[Feeds], Feeds] = lambda feeds: feeds,
    prompts: tuple[tuple[int, ...], ...] = (),
) -> set[str]:
    proof = prove(
        {"model": Runtime(run, spoil)},  # type: ignore[dict-item]
        role="encoder", config=model.config, original=model, dtype="float32", depth=100,
        quantised=None if kind is None else Quantised(kind, 20, GATES[kind], prompts),
    )  # fmt: skip
    return {clause.clause for clause in proof.failures()}


def test_eight_bits_pass_the_gate_and_fail_the_float_tolerance(model: Any):
    rounded = coarse(model, 127)
    assert failed(model, rounded, "8da8w") == set()
    assert "shapes" in failed(model, rounded, None)


def test_two_steps_fall_through_the_gate_and_nothing_else(model: Any):
    assert failed(model, coarse(model, 1), "8da8w") == {"quality"}
    assert failed(model, coarse(model, 1), "8da4w") == {"quality"}


@pytest.mark.parametrize("kind", ["regression", "multi_label_classification"])
def test_labels_that_do_not_exclude_each_other_are_no_distribution(
    kind: str, model: Any, monkeypatch: pytest.MonkeyPatch
):
    """A softmax does not see what is added to all of them; each one's own sigmoid does, and a number is itself."""
    other = coarse(model, 127)
    with torch.no_grad():
        other.classifier.bias += 5.0
    monkeypatch.setattr(model.config, "problem_type", kind)
    assert failed(model, coarse(model, 127), "8da8w") == set()
    assert failed(model, other, "8da8w") == {"quality"}


def test_a_mask_that_is_not_read_is_found_behind_the_quantisation(model: Any):
    def spoil(feeds: Feeds) -> Feeds:
        return feeds | {"attention_mask": np.ones_like(feeds["attention_mask"])}

    assert {"padding", "inert"} <= failed(model, coarse(model, 127), "8da8w", spoil)


@pytest.mark.parametrize("prompts", [1, 3, 80])
def test_the_gate_asks_given_prompts_and_draws_where_they_are_few(model: Any, prompts: int):
    """Of this classifier a position is a row: 256 of them are asked for, and 2048 of prompts where there are so many."""
    given = tuple((2, *range(5 + i % 7, 8 + i % 7 + i % 5), 3) for i in range(prompts))
    seen: list[tuple[int, ...]] = []

    def watch(feeds: Feeds) -> Feeds:
        rows = zip(feeds["input_ids"], feeds["attention_mask"], strict=True)
        seen.extend(tuple(ids[mask == 1].tolist()) for ids, mask in rows)
        return feeds

    proof = prove(
        {"model": Runtime(coarse(model, 127), watch)},  # type: ignore[dict-item]
        role="encoder", config=model.config, original=model, dtype="float32", depth=100, clauses=["quality"],
        quantised=Quantised("8da8w", 20, GATES["8da8w"], given),
    )  # fmt: skip
    (clause,) = proof.clauses
    assert proof.proven and set(given) <= set(seen)
    *judged, elsewhere = clause.cases
    assert len(judged) == 2 and len(seen) >= 256
    assert all(f"over {prompts} real positions of given prompts and " in case.note for case in judged)
    assert elsewhere.case == "drawn tokens: mean KL divergence" and "given" not in elsewhere.note


@pytest.mark.parametrize("place", ["word_embeddings", "position_embeddings"])
def test_what_no_prompt_reaches_is_the_originals_too(place: str, model: Any):
    """Embeddings of tokens that no prompt holds, and of places past all of them, are weights like all others."""
    given = tuple((2, 5 + i % 3, 5 + i % 2, 5 + i // 3 % 3, 3) for i in range(320))
    other = coarse(model, 127)
    with torch.no_grad():
        table = getattr(other.bert.embeddings, place).weight
        table[8:] = table[8:].flip(0)
    assert failed(model, coarse(model, 127), "8da8w", prompts=given) == set()
    assert failed(model, other, "8da8w", prompts=given) == {"quality"}


def test_what_the_memory_of_the_proof_does_not_hold_is_left_out_and_the_rest_asked(model: Any):
    """One prompt of 40 tokens is too much, one of 4 is not; the figures are of what was asked, and it is told."""
    given, short = tuple(range(5, 45)), (2, 5, 6, 3)
    asked = asked_of(
        {"model": Runtime(coarse(model, 127), lambda feeds: feeds)}, "encoder", model.config, model, None, "float32", 9
    )

    class Small(Memory):
        def afford(self, words: str, size: float) -> None:
            if int(words.split(" x ")[1].split()[0]) > 20:
                raise TooLargeError(f"{words} are too large", "Give more.")

    quantised = Quantised("8da8w", 20, GATES["8da8w"], (given, given, short, short))
    cases = distributions(replace(asked, memory=Small(1), quantised=quantised), 2, 2)
    assert [case.left_out for case in cases] == [False, False, True] and "2 x 40" in cases[2].note
    assert "over 2 real positions of given prompts" in cases[0].note


def test_a_long_prompt_is_cut_to_what_the_model_takes(model: Any):
    given = (tuple(range(5, 45)) * 3,)
    assert failed(model, coarse(model, 127), "8da8w", prompts=given) == set()


def test_a_row_that_reads_its_neighbour_is_found(model: Any):
    def spoil(feeds: Feeds) -> Feeds:
        ids = feeds["input_ids"].copy()
        ids[1:, -1:] = ids[:1, -1:]
        return feeds | {"input_ids": ids}

    assert "shapes" in failed(model, coarse(model, 127), "8da8w", spoil)


def test_a_float_artefact_is_not_asked_for_quality_unless_by_name(model: Any):
    sessions: Any = {"model": Runtime(model, lambda feeds: feeds)}
    options: dict[str, Any] = {"role": "encoder", "config": model.config, "dtype": "float32", "depth": 100}
    whole = prove(sessions, original=model, **options)
    assert "quality" not in {clause.clause for clause in whole.clauses}
    named = prove(sessions, original=model, clauses=["quality"], **options)
    assert [clause.reason for clause in named.clauses] == ["nothing in it is quantised"]


def test_without_the_original_the_gate_is_not_asked_and_the_rest_is(model: Any):
    sessions: Any = {"model": Runtime(coarse(model, 127), lambda feeds: feeds)}
    proof = prove(
        sessions, role="encoder", config=model.config, original=None, dtype="float32", depth=100,
        quantised=Quantised("8da8w", 20, GATES["8da8w"]),
    )  # fmt: skip
    found = {clause.clause: clause for clause in proof.clauses}
    assert proof.proven
    assert found["quality"].status == "not applicable" and "--against" in found["quality"].reason
    assert found["padding"].status == "pass"


def test_the_gate_is_asked_past_the_window():
    config = zoo.build("mistral").config
    asked: Any = SimpleNamespace(config=config, inputs=SimpleNamespace(fits=lambda length: length))
    assert longest(asked) > max(windows(config))
