"""Nothing specialised in silence: the refusal names input, axis, value and line."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import trueport
from tests import zoo
from trueport.capture import capture
from trueport.errors import CaptureError, ProofError, SpecializationError
from trueport.interface import Dimension, Interface, Tensor
from trueport.roles.component import Component

INTERFACE = Interface(
    inputs=(
        Tensor("input_ids", "int64", ("batch_size", "sequence_length")),
        Tensor("attention_mask", "int64", ("batch_size", "sequence_length")),
    ),
    outputs=(Tensor("states", "float32", ()),),
    dimensions=(Dimension("batch_size"), Dimension("sequence_length")),
)
SIZES = {"batch_size": 2, "sequence_length": 7}


class Embeds(nn.Module):
    """A module whose ``shape`` decides what it does to its embedding's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 4)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"states": self.shape(self.table(input_ids) * attention_mask[..., None])}

    def shape(self, states: torch.Tensor) -> torch.Tensor:
        return states


class BakedLength(Embeds):
    def shape(self, states: torch.Tensor) -> torch.Tensor:
        return states.reshape(states.shape[0], int(states.shape[1]), 4) + torch.zeros(1, 7, 4)


class BakedBatch(Embeds):
    def shape(self, states: torch.Tensor) -> torch.Tensor:
        return states.reshape(2, -1, 4)


class Draws(Embeds):
    def shape(self, states: torch.Tensor) -> torch.Tensor:
        states = nn.functional.dropout(states, 0.5, training=False)
        return states + torch.rand_like(states) if self.drawn else nn.functional.dropout(states, 0.5)

    drawn = True


class DropsOut(Draws):
    drawn = False


class ReadsValues(Embeds):
    def shape(self, states: torch.Tensor) -> torch.Tensor:
        if states.sum() > 0:
            self.seen = states
        return states


class OneBlock(Embeds):
    def shape(self, states: torch.Tensor) -> torch.Tensor:
        return states * 2 if states.shape[1] <= 7 else states


def component(module: nn.Module) -> Component:
    return Component("model", "model", module, INTERFACE, SIZES)


def line_of(cls: type, text: str) -> int:
    lines, start = inspect.getsourcelines(cls)
    return start + next(index for index, line in enumerate(lines) if text in line)


def test_a_right_module_keeps_both_axes() -> None:
    captured = capture(component(Embeds()))
    assert captured.interface.output("states").shape == ("batch_size", "sequence_length", 4)
    assert captured.interface.output("states").dtype == "float32"


def test_an_output_that_adds_two_dimensions_is_named_so() -> None:
    class Doubles(Embeds):
        def shape(self, states: torch.Tensor) -> torch.Tensor:
            return states.transpose(0, 1).sum(1)

    assert capture(component(Doubles())).interface.output("states").shape == ("sequence_length", 4)


@pytest.mark.parametrize(
    ("module", "axis", "value", "text"),
    [(BakedLength(), 1, 7, "torch.zeros(1, 7, 4)"), (BakedBatch(), 0, 2, "states.reshape(2, -1, 4)")],
)
def test_a_baked_axis_is_refused_with_its_line(module: nn.Module, axis: int, value: int, text: str) -> None:
    with pytest.raises(SpecializationError) as caught:
        capture(component(module))
    message = str(caught.value)
    assert f"axis {axis}" in message
    assert "input_ids" in message or "attention_mask" in message
    assert f"constant {value}" in message
    assert f"test_capture.py:{line_of(type(module), text)}" in message
    assert "\n" not in message


def test_a_branch_that_holds_for_the_traced_size_alone_is_refused() -> None:
    with pytest.raises(SpecializationError, match=r"axis 1 \(sequence_length\).*sizes up to 7 only"):
        capture(component(OneBlock()))


def test_a_bound_past_the_traced_size_is_handed_to_the_proof() -> None:
    class Sliced(Embeds):
        def shape(self, states: torch.Tensor) -> torch.Tensor:
            return states * 2 if states.shape[1] <= 99 else states

    assert capture(component(Sliced())).guards == (100,)


def test_a_number_that_a_branch_divides_a_length_by_is_handed_to_the_proof() -> None:
    class Divided(Embeds):
        def shape(self, states: torch.Tensor) -> torch.Tensor:
            return states * 2 if states.shape[1] % 97 == 0 else states

    assert capture(component(Divided())).guards == (97,)


@pytest.mark.parametrize(
    ("condition", "guards"),
    [
        (lambda rows, tokens: rows > 20, (21,)),
        (lambda rows, tokens: tokens >= 5, ()),
        (lambda rows, tokens: tokens != 61, (61,)),
        (lambda rows, tokens: rows + tokens <= 50, (49, 50)),
        (lambda rows, tokens: tokens // 2 < 30, (60,)),
        (lambda rows, tokens: tokens > 2, ()),
    ],
    ids=["rows", "least", "one", "sum", "quotient", "asked anyhow"],
)
def test_a_size_at_which_a_branch_would_go_the_other_way_is_handed_to_the_proof(
    condition: Any, guards: tuple[int, ...]
) -> None:
    class Branches(Embeds):
        def shape(self, states: torch.Tensor) -> torch.Tensor:
            return states * 2 if condition(*states.shape[:2]) else states

    assert capture(component(Branches())).guards == guards


@pytest.mark.slow
@pytest.mark.parametrize("stamp", [True, False])
def test_a_layer_that_is_unlike_at_sizes_of_its_own_is_not_proven(stamp: bool, tmp_path: Path) -> None:
    def doubled(layer: nn.Module, given: Any, named: Any, result: Any) -> Any:
        rows, tokens = named["hidden_states"].shape[:2]
        cache = named["past_key_values"]
        past = 0 if cache is None else cache.get_seq_length(layer.layer_idx) - tokens
        unlike = tokens % 97 == 0 or rows > 20 or past >= 41
        return (result[0] * 2, *result[1:]) if unlike else result

    model = zoo.build("llama")
    model.model.layers[1].self_attn.register_forward_hook(doubled, with_kwargs=True)
    with pytest.raises(ProofError) as raised:
        trueport.export(model, tmp_path / "out", tokenizer=None, stamp=stamp)
    failed = {case.case for clause in raised.value.proof.failures() for case in clause.cases if case.failed}
    assert {"batch 1, length 97", "batch 21, length 2", "a chunk of 40, 7 x 1"} <= failed


def test_a_value_read_by_python_is_refused_with_its_line() -> None:
    with pytest.raises(CaptureError) as caught:
        capture(component(ReadsValues()))
    assert f"test_capture.py:{line_of(ReadsValues, 'if states.sum() > 0')}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [Draws, DropsOut])
def test_random_numbers_are_refused_with_their_line(kind: type[Draws]) -> None:
    with pytest.raises(CaptureError, match=r"aten\.\w+\.default draws random numbers at .*test_capture\.py:\d+"):
        capture(component(kind()))


def test_no_hook_stays_after_a_failure() -> None:
    from torch.fx.experimental.symbolic_shapes import ShapeEnv

    before = ShapeEnv._set_replacement
    with pytest.raises(CaptureError):
        capture(component(BakedBatch()))
    assert ShapeEnv._set_replacement is before
