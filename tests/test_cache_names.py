"""The name of the cache is the class's own, whichever it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput, CausalLMOutputWithPast

from tests import zoo
from trueport.cache_names import NAMES, cache_name, cache_of, field_name, given_cache, pop_cache
from trueport.errors import CaptureError, RunError, TrueportError
from trueport.roles import components, role_of
from trueport.roles.component import sample


class Old(torch.nn.Module):
    def forward(self, ids: Any, past_key_values: Any = None, use_cache: bool = False) -> None: ...


class New(torch.nn.Module):
    def forward(self, ids: Any, cache: Any = None, use_cache: bool = False) -> None: ...


class Recurrent(torch.nn.Module):
    def forward(self, ids: Any, cache_params: Any = None, use_cache: bool = False) -> None: ...


class Without(torch.nn.Module):
    def forward(self, ids: Any, use_cache: bool = False) -> None: ...


def test_arguments() -> None:
    assert [cache_name(kind) for kind in (Old, New, Recurrent, Without)] == [*NAMES, None]
    assert given_cache(Old(), 3) == {"past_key_values": 3} and given_cache(New(), 3) == {"cache": 3}
    with pytest.raises(CaptureError, match=r"^Without\.forward takes neither past_key_values nor cache"):
        given_cache(Without(), 3)


def test_outputs() -> None:
    assert [cache_of({name: 3, "logits": 4}) for name in NAMES] == [3, 3, 3]
    assert cache_of({"logits": 4}) is None
    output = CausalLMOutputWithPast(logits=torch.ones(1), **{field_name(CausalLMOutputWithPast): 3})
    assert cache_of(output) == 3 and list(output) == ["logits", field_name(CausalLMOutputWithPast)]
    with pytest.raises(TrueportError, match="BaseModelOutput has neither past_key_values nor cache"):
        field_name(BaseModelOutput)


def test_a_cache_given_by_either_name_and_by_both() -> None:
    for name in NAMES:
        arguments = {name: 3, "ids": 4}
        assert pop_cache(arguments) == 3 and arguments == {"ids": 4}
    arguments = {"past_key_values": None, "cache": 3}
    assert pop_cache(arguments) == 3 and not arguments and pop_cache(arguments) is None
    with pytest.raises(RunError, match="given twice"):
        pop_cache({"past_key_values": 3, "cache": 3})


@pytest.mark.parametrize("name", NAMES)
def test_code_that_came_with_a_checkpoint_keeps_its_name(name: str) -> None:
    """Two of them are not the installed transformers' own: the model is the same decoder."""
    model = zoo.build("llama")
    wanted = components(model)[0]
    feeds = sample(wanted.interface, wanted.sizes)
    with torch.no_grad():
        logits = wanted.module(**feeds)["logits"]
        model = zoo.with_cache_name(model, name)
        assert cache_name(model) == name and role_of(model) == "decoder"
        got = components(model)[0]
        assert got.interface == wanted.interface
        assert torch.equal(got.module(**feeds)["logits"], logits)
