"""What layers keep is found by running them, and a cache around it does what transformers' own does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.cache_utils import DynamicCache, DynamicLayer, LinearAttentionLayer

from tests import zoo
from trueport.cache_names import cache_of
from trueport.errors import CaptureError
from trueport.roles import components
from trueport.roles.layers import Slot, cache_of_slots, slots_of, tensors_of_slots


def _names(name: str) -> list[list[str]]:
    (component,) = components(zoo.build(name))
    return [[slot.name for slot in slots] for slots in component.module.layers]  # type: ignore[union-attr]


BOTH, STATES = ["key", "value"], ["conv_state", "recurrent_state"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", [BOTH, BOTH]),
        ("qwen3_5", [STATES, BOTH]),
        ("falcon_h1", [BOTH + STATES] * 2),
        ("lfm2", [["conv_state"], BOTH, ["conv_state"]]),
        ("nemotron_h", [STATES, BOTH, [], STATES]),
        ("mamba", [STATES, STATES]),
    ],
)
def test_what_each_layer_keeps(name: str, expected: list[list[str]]) -> None:
    assert _names(name) == expected


def test_a_cache_for_two_attentions_whose_other_half_is_empty() -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.MegatronBertConfig(vocab_size=99, is_decoder=True, **sizes)
    (component,) = components(transformers.MegatronBertForCausalLM(config).eval())
    assert [[slot.name for slot in slots] for slots in component.module.layers] == [BOTH, BOTH]  # type: ignore[union-attr]


def test_the_interface_says_how_each_begins() -> None:
    (component,) = components(zoo.build("qwen3_5"))
    pairs = {pair.input: pair for pair in component.interface.state}
    assert pairs["past_key_values.0.recurrent_state"].initial == "zeros"
    assert pairs["past_key_values.0.conv_state"].output == "present.0.conv_state"
    assert (pairs["past_key_values.1.key"].initial, pairs["past_key_values.1.key"].axis) == ("empty", 2)
    assert component.interface.input("past_key_values.0.recurrent_state").shape == ("batch_size", 4, 8, 8)
    assert not component.interface.counts_past
    (component,) = components(zoo.build("mamba"))
    assert component.interface.counts_past


@settings(max_examples=40, deadline=None)
@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=4), kernel=st.integers(1, 5))
def test_a_convolution_state_is_what_transformers_keeps(sizes: list[int], kernel: int) -> None:
    """From zeros on, whatever the chunks; also those shorter than the kernel."""
    own = DynamicCache()
    own.layers = [LinearAttentionLayer()]
    slots = [[Slot("conv_state", "float32", (3, kernel))]]
    ours = cache_of_slots(slots, [torch.zeros(2, 3, kernel)])
    for number, size in enumerate(sizes):
        new = torch.randn(2, 3, size, generator=torch.Generator().manual_seed(number))
        wanted = own.update_conv_state(new, 0, conv_kernel_size=kernel)
        got = ours.update_conv_state(new, 0, conv_kernel_size=kernel)
        assert torch.equal(got[..., -size:], wanted[..., -size:])
        ours = cache_of_slots(slots, tensors_of_slots(slots, ours))  # as from step to step of a graph
        assert torch.equal(tensors_of_slots(slots, ours)[0], own.layers[0].conv_states[0])  # type: ignore[attr-defined]


def test_several_states_of_one_layer_keep_their_places() -> None:
    slots = [[Slot("conv_state", "float32", (2, 3)), Slot("conv_state_1", "float32", (4, 3))]]
    tensors = [torch.randn(1, 2, 3), torch.randn(1, 4, 3)]
    cache = cache_of_slots(slots, tensors)
    assert cache.get_conv_state(0, state_idx=1) is tensors[1]
    assert all(one is other for one, other in zip(tensors_of_slots(slots, cache), tensors, strict=True))


def test_other_states_are_refused_by_name() -> None:
    class Odd:
        layers = (object(),)

    model = zoo.build("llama")
    with pytest.raises(CaptureError, match="neither a key-value cache nor a recurrent state in one \\(Odd\\)"):
        slots_of(model, Odd(), 2)
    with pytest.raises(CaptureError, match="NoneType"):
        slots_of(model, None, 2)


def test_keys_of_another_form_are_refused() -> None:
    cache: Any = DynamicCache()
    layer = DynamicLayer()
    layer.update(torch.zeros(1, 2, 5, 4), torch.zeros(1, 2, 5, 4))
    cache.layers = [layer]
    with pytest.raises(CaptureError, match="1 row of 2 tokens"):
        slots_of(zoo.build("llama"), cache, 2)


def test_a_layer_that_did_not_run_is_none() -> None:
    model = zoo.build("llama")
    with torch.no_grad():
        cache = cache_of(model(input_ids=torch.zeros(1, 2, dtype=torch.long), use_cache=True))
    cache.layers.append(DynamicLayer())
    assert slots_of(model, cache, 2)[-1] is None
