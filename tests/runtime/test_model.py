"""``__call__`` and ``step``: the original's outputs, the runtime's own buffers, one line for what does not fit."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from transformers import DynamicCache
from transformers.modeling_outputs import BaseModelOutputWithPooling, CausalLMOutputWithPast, Seq2SeqLMOutput

import trueport
from tests import zoo
from tests.runtime.test_generate import prompts
from trueport.cache_names import NAMES, cache_of
from trueport.errors import RunError
from trueport.interface import Dimension, Interface, Tensor
from trueport.runtime.feeds import Feeder

pytestmark = pytest.mark.xdist_group("runtime")

CLOSE = {"rtol": 1e-3, "atol": 1e-4}


@torch.no_grad()
def test_decoder_logits(pair):
    original, model = pair("llama")
    inputs = prompts(original, 3)
    wanted, got = original(**inputs).logits, model(**inputs)
    assert isinstance(got, CausalLMOutputWithPast)
    real = inputs["attention_mask"].bool()  # rotary positions are relative, so a missing position_ids is no matter
    torch.testing.assert_close(got.logits[real], wanted[real], **CLOSE)
    assert torch.equal(model(*inputs.values(), return_dict=False)[0], got.logits)


@torch.no_grad()
def test_seq2seq_logits(pair):
    original, model = pair("t5")
    inputs = prompts(original, 3) | {"decoder_input_ids": torch.randint(5, 95, (3, 6))}
    wanted, got = original(**inputs), model(**inputs)
    assert isinstance(got, Seq2SeqLMOutput)
    torch.testing.assert_close(got.logits, wanted.logits, **CLOSE)
    real = inputs["attention_mask"].bool()
    torch.testing.assert_close(got.encoder_last_hidden_state[real], wanted.encoder_last_hidden_state[real], **CLOSE)


@torch.no_grad()
def test_encoder(pair):
    original, model = pair("bert")
    ids, mask = torch.randint(5, 95, (2, 7)), torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
    wanted, got = original(ids, mask), model(ids, mask)
    assert isinstance(got, BaseModelOutputWithPooling)
    torch.testing.assert_close(got.last_hidden_state[mask.bool()], wanted.last_hidden_state[mask.bool()], **CLOSE)
    torch.testing.assert_close(got.pooler_output, wanted.pooler_output, **CLOSE)
    whole = model(ids)
    assert torch.equal(whole.last_hidden_state, model(ids, torch.ones_like(ids), torch.zeros_like(ids))[0])
    assert not model.can_generate()
    with pytest.raises(RunError, match="no decoder to generate with"):
        model.generate(ids)


def test_a_token_past_the_vocabulary_is_told_in_words(pair):
    _, model = pair("bert")
    ids = torch.tensor([[5, model.config.vocab_size + 3]])
    with pytest.raises(
        RunError, match=f"token {model.config.vocab_size + 3} .* knows {model.config.vocab_size} tokens"
    ):
        model(ids)


def test_any_chunking(pair):
    """Logits of a row in chunks of 1, 4 and 7 over a cache, by either of its names, equal those of the whole."""
    original, model = pair("llama")
    ids = prompts(original, 1)["input_ids"]
    whole, cache, parts = model(ids).logits, model.new_cache(), []
    for chunk, name in zip(ids.split([1, 4, 7], dim=1), [*NAMES, *NAMES], strict=False):
        parts.append(model(chunk, **{name: cache}).logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, **CLOSE)


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_caches_are_bound(pair, name: str, monkeypatch):
    """What one step gives out is the very memory that the next one reads."""
    _, model = pair(name)
    session = model.main.session
    given: list[dict[str, int]] = []
    taken: list[dict[str, int]] = []
    execute = session._execute

    def watching(values, feeds):
        given.append({key: value.data_ptr() for key, value in values.items() if key not in feeds})
        results = execute(values, feeds)
        taken.append({pair.input: results[pair.output].data_ptr() for pair in session.interface.state})
        return results

    def forbidden(*args, **kwargs):
        raise AssertionError("a copy through NumPy")

    monkeypatch.setattr(session, "_execute", watching)
    monkeypatch.setattr("trueport.targets.onnx.session.from_numpy", forbidden)
    monkeypatch.setattr("trueport.targets.onnx.session.to_numpy", forbidden)
    model.generate(torch.arange(5, 12)[None], max_new_tokens=5, min_new_tokens=5, do_sample=False)
    assert len(given) == 5 and given[0]
    for before, after in zip(taken, given[1:], strict=False):
        assert before == after


def test_logits_outlive_the_session_step(pair):
    """A result is a view of the runtime's memory, and keeps it."""
    _, model = pair("llama")
    ids = torch.arange(5, 12)[None]
    first = model(ids).logits
    kept = first.clone()
    for token in range(20, 40):
        model(torch.full((1, 7), token))
    assert torch.equal(first, kept)


def test_step_carries_the_state(pair):
    _, model = pair("llama")
    ids = torch.arange(5, 12)[None]
    state, parts = None, []
    for token in ids.split(1, dim=1):
        outputs, state = model.step({"input_ids": token}, state)
        parts.append(outputs["logits"])
    assert set(outputs) == {"logits"}
    assert state.length("past_key_values.0.key", 2) == 7
    torch.testing.assert_close(torch.cat(parts, dim=1), model(ids).logits, **CLOSE)


def test_step_of_a_component(pair):
    _, model = pair("t5")
    ids = torch.arange(5, 12)[None]
    states, _ = model.step({"input_ids": ids}, component="encoder")
    feeds = {"input_ids": torch.tensor([[0]]), "encoder_hidden_states": states["last_hidden_state"]}
    outputs, state = model.step(feeds)
    wanted = model(ids, decoder_input_ids=torch.tensor([[0]])).logits
    assert torch.equal(outputs["logits"], wanted)
    assert state.length("past_key_values.0.encoder.key", 2) == 7
    with pytest.raises(RunError, match="has no component middle; it has encoder, decoder"):
        model.step(feeds, component="middle")


@pytest.fixture
def cache(pair):
    """A llama's cache over three rows of five tokens, and its tensors."""
    _, model = pair("llama")
    cache = model.new_cache()
    model(torch.arange(5, 20).reshape(3, 5), past_key_values=cache)
    return cache


def test_cache_sizes(cache):
    assert (len(cache), cache.get_seq_length(), cache.batch_size, cache.get_max_length()) == (2, 5, 3, -1)
    assert cache.is_initialized and cache.is_croppable and not cache.is_compileable
    assert cache.get_mask_sizes(2, 0) == (7, 0)
    cache.reset()
    assert (cache.get_seq_length(), cache.batch_size, cache.tensors) == (0, -1, {})


def test_cache_rows(cache):
    before = cache.tensors
    cache.reorder_cache(torch.tensor([2, 0, 0]))
    for name, tensor in cache.tensors.items():
        assert torch.equal(tensor, before[name][[2, 0, 0]])
    cache.batch_select_indices(torch.tensor([True, False, True]))
    cache.batch_repeat_interleave(2)
    for name, tensor in cache.tensors.items():
        assert torch.equal(tensor, before[name][[2, 2, 0, 0]])


def test_cache_order_kept_costs_nothing(cache):
    before = cache.state
    cache.reorder_cache(torch.arange(3))
    assert cache.state is before


def test_cache_crop(cache):
    before = cache.tensors
    other = copy.deepcopy(cache)
    cache.crop(0)
    cache.crop(-2)
    assert cache.get_seq_length() == 3 and other.get_seq_length() == 5
    for name, tensor in cache.tensors.items():
        assert torch.equal(tensor, before[name][:, :, :3])
    cache.crop(-9)
    assert cache.get_seq_length() == 0
    with pytest.raises(RunError, match="negative"):
        cache.crop(1)
    with pytest.raises(RunError, match="updated by the graph"):
        cache.update(None, None, 0)


def test_cross_cache_is_not_cropped(pair):
    original, model = pair("t5")
    got = model(**prompts(original, 3), decoder_input_ids=torch.arange(12).reshape(3, 4))
    cache = cache_of(got)
    cache.crop(-1)
    assert cache.get_seq_length() == 3
    assert cache.tensors["past_key_values.1.encoder.value"].shape[2] == 12


IDS = torch.arange(5, 12)[None]


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "needs input_ids; it takes input_ids, attention_mask, position_ids"),
        ({"input_ids": IDS, "labels": IDS}, "has no input labels; it takes input_ids"),
        ({"input_ids": IDS.float()}, "takes input_ids as int64, not as float32"),
        ({"input_ids": IDS, "attention_mask": IDS / 12}, "takes attention_mask as int64, not as float32"),
        ({"input_ids": IDS[0]}, r"takes input_ids of shape \(batch_size, sequence_length\), not \(7,\)"),
        ({"input_ids": IDS[:, :0]}, "sequence_length is 0; model.onnx takes 1 or more"),
        ({"input_ids": IDS[:0]}, "batch_size is 0; model.onnx takes 1 or more"),
        ({"input_ids": IDS - 10}, "got the token -5 in input_ids"),
        ({"input_ids": IDS + 95}, r"got the token 10\d in input_ids; the model knows \d+ tokens"),
        ({"input_ids": IDS, "attention_mask": IDS[:, :3]}, r"not \(1, 3\) where past_sequence_length \+ .* is 7"),
        ({"input_ids": IDS, "attention_mask": IDS.expand(2, 7)}, r"not \(2, 7\) where batch_size is 1"),
        ({"input_ids": IDS, "past_key_values": DynamicCache()}, "a DynamicCache that is not this model's"),
        ({"input_ids": IDS, "output_hidden_states": True}, "output_hidden_states asks for values"),
        ({"input_ids": IDS, "token_type_ids": IDS}, "has no input token_type_ids"),
    ],
)
def test_wrong_inputs(pair, capfd, inputs, message: str):
    _, model = pair("llama")
    with pytest.raises(RunError, match=message) as caught:
        model(**inputs)
    assert "\n" not in str(caught.value)
    assert not capfd.readouterr().err  # the runtime does not print what is raised


def test_wrong_cache(pair):
    _, model = pair("llama")
    cache = model.new_cache()
    model(IDS, past_key_values=cache)
    with pytest.raises(RunError, match=r"not \(2, 7\) where batch_size is 1"):
        model(IDS.expand(2, 7), past_key_values=cache)
    _, other = pair("t5")
    with pytest.raises(RunError, match="a RuntimeCache that is not this model's"):
        other(IDS, decoder_input_ids=IDS, past_key_values=cache)


def test_too_many_and_twice(pair):
    _, model = pair("llama")
    with pytest.raises(RunError, match="input_ids is given twice"):
        model(IDS, input_ids=IDS)
    with pytest.raises(RunError, match="At most 5 inputs"):
        model(*[None] * 6)


def test_what_is_equal_is_taken(pair):
    """Other integer types, masks of booleans, arrays, scattered memory, and inputs that say nothing."""
    _, model = pair("llama")
    wanted = model(IDS).logits
    scattered = torch.stack([IDS, IDS], dim=-1)[..., 0]
    assert not scattered.is_contiguous()
    for ids in (IDS.int(), IDS.numpy(), IDS.numpy().astype(np.int16), scattered):
        assert torch.equal(model(ids).logits, wanted)
    for kind in (torch.bool, torch.float32, torch.float16):
        assert torch.equal(model(IDS, torch.ones(1, 7, dtype=kind)).logits, wanted)
    assert torch.equal(model(IDS, position_ids=torch.arange(7)[None]).logits, wanted)
    assert torch.equal(model(IDS, token_type_ids=torch.zeros_like(IDS)).logits, wanted)


def test_seq2seq_refusals(pair):
    _, model = pair("t5")
    with pytest.raises(RunError, match="needs decoder_input_ids"):
        model(IDS)
    with pytest.raises(RunError, match="takes no decoder_attention_mask"):
        model(IDS, decoder_input_ids=IDS, decoder_attention_mask=IDS * 0)


def test_what_a_decoder_does_not_read_is_refused_beside_the_encoders_outputs(pair):
    _, model = pair("t5")
    given = {"decoder_input_ids": IDS, "encoder_outputs": model.get_encoder()(IDS)}
    for name in ("labels", "decoder_inputs_embeds", "position_ids"):
        with pytest.raises(RunError, match=f"takes no {name}"):
            model(**given, **{name: IDS})
    assert torch.equal(model(IDS, IDS * 0 + 1, **given).logits, model(IDS, decoder_input_ids=IDS).logits)


@pytest.mark.slow
def test_token_types_that_are_tokens_are_refused(pair):
    """GPT-2 adds the embedding of token 0 where its token_type_ids are zeros; Llama has none, and passes them over."""
    original, model = pair("gpt2")
    types = torch.zeros_like(IDS)
    with torch.no_grad():
        assert not torch.allclose(original(IDS, token_type_ids=types).logits, original(IDS).logits)
    with pytest.raises(RunError, match="token_type_ids"):
        model(IDS, token_type_ids=types)


@pytest.mark.slow
def test_positions_that_the_original_counts_by_its_tokens_are_asked_for(tmp_path: Path) -> None:
    """RoBERTa begins behind its padding's id where it is given none, and at 0 within generate."""
    sizes = next(entry.config for entry in zoo.ENTRIES if entry.name == "roberta")
    torch.manual_seed(0)
    original = transformers.RobertaForCausalLM(transformers.RobertaConfig(**{**sizes, "is_decoder": True})).eval()
    zoo.amplify(original, seed=0)
    trueport.export(original, tmp_path / "out", tokenizer=None, proof=False)
    model, positions = trueport.load(tmp_path / "out"), torch.arange(2, 2 + IDS.shape[1]).expand(IDS.shape)
    with pytest.raises(
        RunError, match=r"Without position_ids a RobertaForCausalLM counts from behind.* Give position_ids"
    ):
        model(IDS)
    with torch.no_grad():
        truth = original(IDS, position_ids=positions).logits
    torch.testing.assert_close(model(IDS, position_ids=positions).logits, truth, rtol=1e-4, atol=1e-4)
    options = {"max_new_tokens": 5, "do_sample": False}
    assert torch.equal(model.generate(IDS, **options), original.generate(IDS, **options))


@pytest.mark.parametrize("length", [4, 9])
def test_a_cache_of_another_source_is_refused(pair, length: int):
    """A decoder projects what its cache lacks of a source: of a longer one it would read the rest behind the other's."""
    _, model = pair("t5")
    cache = cache_of(model(IDS, decoder_input_ids=IDS[:, :2]))
    source = torch.arange(30, 30 + length)[None]
    with pytest.raises(RunError, match=f"begun with a source of 7 tokens, and this one has {length}"):
        model(source, decoder_input_ids=IDS[:, :1], past_key_values=cache)
    with pytest.raises(RunError, match="begun with a source of 7 tokens"):
        model.generate(source, decoder_input_ids=IDS[:, :3], past_key_values=cache, max_new_tokens=2)


def test_too_many_rows_are_told_apart_from_too_many_tokens():
    sizes = Dimension("batch_size", 1, 2), Dimension("sequence_length", 1, 8)
    tensor = Tensor("input_ids", "int64", ("batch_size", "sequence_length"))
    feeder = Feeder("model.pte", Interface((tensor,), (), sizes))
    with pytest.raises(RunError, match=r"batch_size is 3; .* Give fewer rows or beams"):
        feeder({"input_ids": torch.zeros(3, 4, dtype=torch.long)}, {})
    with pytest.raises(RunError, match=r"sequence_length is 9; .* Give a shorter input"):
        feeder({"input_ids": torch.zeros(2, 9, dtype=torch.long)}, {})


@pytest.mark.slow
def test_features(pair):
    """An audio encoder reads every frame: a mask is taken and ignored, another number of frames refused."""
    _, model = pair("whisper")
    features = torch.randn(1, 8, 32)
    options = {"max_new_tokens": 4, "do_sample": False}
    masked = model.generate(input_features=features, attention_mask=torch.zeros(1, 32), **options)
    assert torch.equal(masked, model.generate(input_features=features, **options))
    with pytest.raises(RunError, match=r"input_features of shape \(batch_size, 8, 32\), not \(1, 8, 30\)"):
        model(features[..., :30], decoder_input_ids=torch.tensor([[3]]))
