"""Every cache is a pytree node inside the context, none is one afterwards that was not one before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree
from transformers import cache_utils
from transformers.cache_utils import DynamicCache, EncoderDecoderCache, StaticCache

import trueport
from tests import zoo
from trueport.cache_names import cache_of, given_cache
from trueport.errors import TrueportError
from trueport.patches.caches import cache_classes, register, registered_caches, unknown_classes, unregister


@trueport.state
class Memory:
    """A user's own state."""

    __slots__ = ("extra", "length", "mems")

    def __init__(self, mems: list[torch.Tensor], length: int) -> None:
        self.mems, self.length, self.extra = mems, length, None


def configuration(kind: str) -> Any:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2}
    if kind == "sliding":
        return transformers.MistralConfig(**sizes, sliding_window=4)
    return transformers.LlamaConfig(**sizes)


def filled(kind: str, length: int) -> Any:
    """A cache of some kind after ``length`` tokens, or as it is before the first."""
    config = configuration(kind)
    if kind == "static":
        cache: Any = StaticCache(config=config, max_cache_len=16)
    elif kind == "cross":
        cache = EncoderDecoderCache(DynamicCache(config=config), DynamicCache(config=config))
        cache.is_updated[0] = True
    else:
        cache = DynamicCache(config=config)
    for layer in range(2 if length else 0):
        keys = torch.randn(2, 2, length, 8)
        (cache.self_attention_cache if kind == "cross" else cache).update(keys, keys + 1, layer)
    return cache


def alike(one: Any, other: Any) -> bool:
    """Equal through and through, and of the same classes."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if type(one) is not type(other):
        return False
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(alike(one[key], other[key]) for key in one)
    if type(one).__module__.startswith("transformers.") and hasattr(one, "__dict__"):
        return alike(vars(one), vars(other))
    return bool(one == other)


@pytest.fixture(scope="module", autouse=True)
def _nothing_registered() -> Iterator[None]:
    """Set aside what other tests of this process made nodes of: transformers.exporters registers its caches for good."""
    tables: list[dict[Any, Any]] = [
        pytree.SUPPORTED_NODES,
        pytree.SUPPORTED_SERIALIZED_TYPES,
        fx_pytree.SUPPORTED_NODES,
    ]
    tables.append(fx_pytree.SUPPORTED_NODES_EXACT_MATCH)
    named = pytree.SERIALIZED_TYPE_TO_PYTHON_TYPE
    before = [dict(table) for table in (*tables, named)]
    caches = set(cache_classes())
    for table in tables:
        for cls in caches & set(table):
            del table[cls]
    for name in [name for name, cls in named.items() if cls in caches]:
        del named[name]
    yield
    for table, content in zip((*tables, named), before, strict=True):
        table.clear()
        table.update(content)


KINDS = ("dynamic", "sliding", "static", "cross")


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(KINDS), st.integers(0, 6))
def test_caches_survive_the_round_trip(kind: str, length: int) -> None:
    cache = filled(kind, length)
    with registered_caches():
        leaves, spec = pytree.tree_flatten(cache)
        again = pytree.tree_unflatten(leaves, spec)
        assert alike(again, cache)
        assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
        assert pytree.tree_structure(again) == spec
        assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec
        torch.fx._pytree.tree_flatten_spec(cache, spec)
    if length and kind in ("dynamic", "sliding"):  # a static one writes into the tensors that both hold
        again.update(torch.randn(2, 2, 1, 8), torch.randn(2, 2, 1, 8), 0)
        assert not alike(again, cache)


STATES = {
    "mamba": ("MambaConfig", "MambaModel", {"state_size": 4, "hidden_size": 16, "num_hidden_layers": 2}),
    "mamba2": (
        "Mamba2Config", "Mamba2Model",
        {"state_size": 4, "hidden_size": 16, "num_hidden_layers": 2, "head_dim": 8, "num_heads": 4, "n_groups": 2},
    ),
    "jamba": (
        "JambaConfig", "JambaModel",
        {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "intermediate_size": 16, "attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False,
            "num_experts": 2, "mamba_dt_rank": 4,
        },
    ),
    "lfm2": (
        "Lfm2Config", "Lfm2Model",
        {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "intermediate_size": 16, "layer_types": ["conv", "full_attention"], "block_multiple_of": 8,
        },
    ),
    "qwen3_next": (
        "Qwen3NextConfig", "Qwen3NextModel",
        {
            "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "intermediate_size": 16, "layer_types": ["linear_attention", "full_attention"], "head_dim": 8,
            "linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "num_experts": 2,
            "linear_value_head_dim": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
            "shared_expert_intermediate_size": 16,
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STATES)
@torch.no_grad()
def test_states_of_hybrid_models_survive_the_round_trip(name: str) -> None:
    config_class, model_class, sizes = STATES[name]
    config = getattr(transformers, config_class)(vocab_size=20, pad_token_id=0, **sizes)
    model = getattr(transformers, model_class)(config).eval()
    output = model(input_ids=torch.ones(1, 3, dtype=torch.long), use_cache=True)
    cache = cache_of(output) or output["cache_params"]
    with registered_caches():
        leaves, spec = pytree.tree_flatten(cache)
        assert len(leaves) >= 3 and all(isinstance(leaf, torch.Tensor) for leaf in leaves)
        assert alike(pytree.tree_unflatten(leaves, spec), cache)
        assert pytree.treespec_loads(pytree.treespec_dumps(spec)) == spec


def test_every_class_of_transformers_is_there() -> None:
    found = set(cache_classes())
    assert {DynamicCache, StaticCache, EncoderDecoderCache, cache_utils.QuantizedCache, cache_utils.DummyLayer} <= found
    assert {cache_utils.LinearAttentionLayer, cache_utils.StaticSlidingWindowLayer, cache_utils.QuantizedLayer} <= found
    import transformers.models.xlstm.modeling_xlstm as xlstm

    assert xlstm.xLSTMCache in set(cache_classes())

    class Late(DynamicCache):
        """Found at run time."""

    assert Late in set(cache_classes())


def test_registering_twice_and_beside_transformers_is_safe() -> None:
    from transformers.integrations.executorch import register_dynamic_cache_export_support

    assert DynamicCache not in pytree.SUPPORTED_NODES
    with registered_caches() as outer:
        with registered_caches() as inner:
            assert outer and not inner
        register_dynamic_cache_export_support()
        assert DynamicCache in pytree.SUPPORTED_NODES
    assert DynamicCache not in pytree.SUPPORTED_NODES
    register_dynamic_cache_export_support()
    try:
        node = pytree.SUPPORTED_NODES[DynamicCache]
        with registered_caches() as added:
            assert DynamicCache not in added and pytree.SUPPORTED_NODES[DynamicCache] is node
        assert pytree.SUPPORTED_NODES[DynamicCache] is node
    finally:
        pytree._deregister_pytree_node(DynamicCache)
        torch.fx._pytree._deregister_pytree_flatten_spec(DynamicCache)


def test_model_outputs_are_nodes() -> None:
    output = transformers.modeling_outputs.BaseModelOutput(last_hidden_state=torch.ones(2))
    leaves, spec = pytree.tree_flatten(output)
    assert len(leaves) == 1 and type(pytree.tree_unflatten(leaves, spec)) is type(output)


def test_a_users_state_goes_in_and_comes_out() -> None:
    class Recurrent(nn.Module):
        def forward(self, x: torch.Tensor, memory: Memory) -> tuple[torch.Tensor, Memory]:
            mems = [mem + x.sum(0) for mem in memory.mems]
            return x + mems[0], Memory(mems, memory.length + 1)

    x, memory = torch.ones(3, 2), Memory([torch.zeros(2), torch.ones(2)], 5)
    program = torch.export.export(Recurrent(), (x, memory))
    _, after = program.module()(x, memory)
    assert type(after) is Memory and after.length == 6 and torch.equal(after.mems[1], torch.full((2,), 4.0))
    with pytest.raises(TrueportError, match="not a class"):
        trueport.state(lambda: None)  # type: ignore[type-var]


def test_a_cache_goes_through_torch_export() -> None:
    model = zoo.build("llama")
    cache = DynamicCache(config=model.config)
    for layer in range(2):
        cache.update(torch.randn(1, 2, 3, 8), torch.randn(1, 2, 3, 8), layer)
    feeds = {"input_ids": torch.ones(1, 2, dtype=torch.long), "use_cache": True}
    given = given_cache(model, cache)
    with trueport.exportable(model, rewrite=False):
        program = torch.export.export(model, (), feeds | given)
        result = program.module()(**feeds, **given)
        reference = model(**feeds, **pytree.tree_map(torch.clone, given))
    assert type(cache_of(result)) is DynamicCache
    torch.testing.assert_close(result.logits, reference.logits)
    torch.testing.assert_close(cache_of(result).layers[1].keys, cache_of(reference).layers[1].keys)


def test_what_a_file_names_must_be_a_cache_that_is_loaded() -> None:
    with registered_caches():
        spec = pytree.treespec_dumps(pytree.tree_structure(filled("dynamic", 2)))
        with pytest.raises(TrueportError, match=r"os\.system"):
            pytree.treespec_loads(spec.replace('["transformers.cache_utils.DynamicCache"', '["os.system"'))


def test_unknown_classes_are_named() -> None:
    class Hidden:
        def __init__(self) -> None:
            self.states = [torch.ones(1)]

    assert unknown_classes({"a": Hidden(), "b": torch.ones(1)}) == [Hidden]
    added = register([Hidden])
    try:
        assert added == [Hidden] and unknown_classes(Hidden()) == []
    finally:
        unregister(added)
