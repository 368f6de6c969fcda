"""``generate`` of an artefact equals the original's, token for token."""

from __future__ import annotations

import copy
from threading import Thread

import pytest
import torch
from transformers import GenerationMixin, StoppingCriteria, TextIteratorStreamer
from transformers.generation.streamers import BaseStreamer

from tests.zoo import WINDOW
from trueport.cache_names import NAMES, cache_of
from trueport.errors import RunError
from trueport.runtime import RuntimeCache

pytestmark = pytest.mark.xdist_group("runtime")  # one process, so that each model is exported once

LENGTHS = (12, 7, 9)
NEW = 16  # crosses the sliding window of 8, and the prompts do so too
FAST = ["llama", "t5"]
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("gpt2", "gemma3_text", "bart", "whisper")]
everyone = pytest.mark.parametrize("name", [*FAST, *SLOW])

MODES = {
    "greedy": {"do_sample": False},
    "beams": {"num_beams": 3, "num_return_sequences": 2, "do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 20},
    "several samples": {"do_sample": True, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 2, "do_sample": True},
    "no cache": {"do_sample": False, "use_cache": False},
}


def prompts(model, rows: int) -> dict[str, torch.Tensor]:
    """Ragged rows, padded left for a decoder and right for an encoder; features for an audio model."""
    generator = torch.Generator().manual_seed(rows)
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(rows, 8, 32, generator=generator)}
    ids = torch.randint(5, 95, (rows, max(LENGTHS)), generator=generator)
    mask = torch.ones_like(ids)
    for row, length in enumerate(LENGTHS[:rows]):
        padding = slice(length, None) if model.config.is_encoder_decoder else slice(0, max(LENGTHS) - length)
        mask[row, padding] = 0
        ids[row, padding] = model.config.pad_token_id
    return {"input_ids": ids, "attention_mask": mask}


def generate(model, inputs, *, new: int = NEW, **options) -> torch.Tensor:
    """Plain ``GenerationMixin.generate`` (Whisper's own cuts audio into segments), seeded, of one length."""
    torch.manual_seed(3)
    return GenerationMixin.generate(model, **inputs, max_new_tokens=new, min_new_tokens=new, **options)


@everyone
@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("mode", MODES)
def test_tokens(pair, name: str, rows: int, mode: str):
    original, model = pair(name)
    inputs = prompts(original, rows)
    wanted = generate(original, inputs, **MODES[mode])
    assert len(wanted.unique()) > 2
    assert torch.equal(generate(model, inputs, **MODES[mode]), wanted)


@pytest.mark.slow
def test_past_the_window(pair):
    """Prompts shorter than the window, continued to five times its length."""
    original, model = pair("gemma3_text")
    inputs = {"input_ids": torch.randint(5, 95, (2, WINDOW - 3), generator=torch.Generator().manual_seed(0))}
    wanted = generate(original, inputs, new=5 * WINDOW, do_sample=False)
    assert torch.equal(generate(model, inputs, new=5 * WINDOW, do_sample=False), wanted)


class Recorder(BaseStreamer):
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.tokens: list[torch.Tensor] = []
        self.ended = False

    def put(self, value: torch.Tensor) -> None:
        self.tokens.append(value.reshape(-1))

    def end(self) -> None:
        self.ended = True


@pytest.mark.parametrize("name", FAST)
def test_streamer(pair, name: str):
    original, model = pair(name)
    inputs, recorder = prompts(original, 1), Recorder()
    tokens = generate(model, inputs, do_sample=False, streamer=recorder)
    assert recorder.ended
    assert torch.equal(torch.cat(recorder.tokens), tokens[0])
    assert torch.equal(tokens, generate(original, inputs, do_sample=False))


def test_streamer_of_text(pair, tokenizer):
    """In a thread, as servers do it."""
    original, model = pair("llama")
    inputs = prompts(original, 1)
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, timeout=60)
    thread = Thread(target=generate, args=(model, inputs), kwargs={"do_sample": False, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    wanted = generate(original, inputs, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert text == tokenizer.decode(wanted)


class AfterToken(StoppingCriteria):
    """Stop a row as soon as it ends with a token."""

    def __init__(self, token: int) -> None:
        self.token = token
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: object, **kwargs: object) -> torch.Tensor:
        self.calls += 1
        return input_ids[:, -1] == self.token


@pytest.mark.parametrize("name", ["llama", "t5"])
def test_a_tokenizer_for_stop_strings(pair, tokenizer, name: str):
    """transformers hands it on to the model, whose own ones do not mind it."""
    original, loaded = pair(name)
    ids = torch.tensor([[5, 6, 7]])
    wanted, found = (m.generate(input_ids=ids, max_new_tokens=6, tokenizer=tokenizer) for m in (original, loaded))
    assert torch.equal(found, wanted)


def test_stopping_criteria(pair):
    original, model = pair("llama")
    inputs = prompts(original, 1)
    token = int(generate(original, inputs, do_sample=False)[0, -6])
    stop, options = AfterToken(token), {"max_new_tokens": NEW, "do_sample": False}
    stopped = model.generate(**inputs, **options, stopping_criteria=[stop])
    assert torch.equal(stopped, original.generate(**inputs, **options, stopping_criteria=[AfterToken(token)]))
    assert stop.calls == stopped.shape[1] - inputs["input_ids"].shape[1] < NEW


def test_end_of_sequence_is_padded(pair):
    """Rows that end early are filled with padding, as the original fills them."""
    original, model = pair("llama")
    inputs = prompts(original, 3)
    token = int(generate(original, inputs, do_sample=False)[0, -8])
    options = {"max_new_tokens": NEW, "do_sample": False, "eos_token_id": token}
    wanted = original.generate(**inputs, **options)
    assert (wanted[0, -7:] == original.config.pad_token_id).all()
    assert torch.equal(model.generate(**inputs, **options), wanted)


@pytest.mark.parametrize("name", FAST)
@pytest.mark.parametrize("kind", ["lookup", "assistant"])
def test_assisted(pair, name: str, kind: str):
    """Candidates that are refused are cropped off the cache."""
    original, model = pair(name)
    inputs = prompts(original, 1)
    options = {"prompt_lookup_num_tokens": 3} if kind == "lookup" else {"assistant_model": original}
    wanted = generate(original, inputs, do_sample=False)
    assert torch.equal(generate(model, inputs, do_sample=False, **options), wanted)


def test_an_assistant_of_another_vocabulary_that_samples_is_refused(pair, tokenizer):
    """transformers would cut its output layer down to what both tokenizers know."""
    original, model = pair("llama")
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["another"])
    small = copy.copy(model.config)
    small.vocab_size = 98
    assistant = copy.deepcopy(model)
    assistant.config = small
    options = {"tokenizer": tokenizer, "assistant_tokenizer": other, "do_sample": True, "max_new_tokens": 4}
    with pytest.raises(RunError, match=r"output embeddings.*do_sample=False"):
        original.generate(torch.tensor([[5, 6, 7]]), assistant_model=assistant, **options)


def test_prefill_in_chunks(pair):
    original, model = pair("llama")
    inputs = prompts(original, 3)
    wanted = generate(original, inputs, do_sample=False)
    assert torch.equal(generate(model, inputs, do_sample=False, prefill_chunk_size=5), wanted)


def test_scores_and_cache_are_returned(pair):
    original, model = pair("llama")
    inputs = prompts(original, 3)
    options = {"do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    wanted, got = generate(original, inputs, **options), generate(model, inputs, **options)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(wanted.logits), rtol=1e-3, atol=1e-3)
    assert isinstance(cache_of(got), RuntimeCache)
    assert cache_of(got).get_seq_length() == cache_of(wanted).get_seq_length()


def test_a_cache_goes_on_and_is_copied(pair):
    """The documented way to reuse a prompt: fill a cache, copy it, generate from the copy."""
    original, model = pair("llama")
    start = prompts(original, 1)["input_ids"]
    cache = model.new_cache()
    model(start, past_key_values=cache)
    whole = {"input_ids": torch.cat([start, start[:, :3]], dim=-1)}
    wanted = generate(original, whole, do_sample=False)
    for name in NAMES:
        options = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}
        got = model.generate(**whole, **options, **{name: copy.deepcopy(cache)})
        assert torch.equal(got, wanted)
    assert cache.get_seq_length() == start.shape[1]


def test_decoder_prompt(pair):
    """An encoder-decoder that is told how its target begins."""
    original, model = pair("t5")
    inputs = prompts(original, 3) | {"decoder_input_ids": torch.tensor([[0, 7, 9]] * 3)}
    wanted = generate(original, inputs, do_sample=False)
    assert torch.equal(generate(model, inputs, do_sample=False), wanted)


def test_inputs_embeds_are_refused(pair):
    for name in FAST:
        _, model = pair(name)
        with pytest.raises(RunError, match="has no input inputs_embeds"):
            model.generate(inputs_embeds=torch.randn(1, 3, 32), max_new_tokens=2)


@pytest.mark.parametrize(
    "option",
    [{"assistant_early_exit": 1}, {"use_mtp": True}, {"speculation_type": "dflash"}, {"cache_implementation": "paged"}],
)
def test_options_that_need_the_models_own_modules_are_refused(pair, option):
    _, model = pair("llama")
    with pytest.raises(RunError, match=next(iter(option))):
        model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=2, **option)


def test_a_cache_of_ones_own_and_a_kind_of_cache_are_refused(pair):
    """As transformers refuses them."""
    _, model = pair("llama")
    with pytest.raises(RunError, match="cache_implementation='static' is given beside a cache"):
        options = {"max_new_tokens": 2, "cache_implementation": "static"}
        model.generate(torch.tensor([[5, 6, 7]]), past_key_values=model.new_cache(), **options)


NEGATIVE = {
    "guidance_scale": 1.5,
    "negative_prompt_ids": torch.tensor([[0, 0, 9, 11], [7, 7, 7, 13]]),
    "negative_prompt_attention_mask": torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]),
}


def test_guidance(pair):
    """A padded negative prompt, which transformers gives the model without positions, whose rotations know differences."""
    original, model = pair("llama")
    inputs = prompts(original, 2)
    wanted = generate(original, inputs, do_sample=False, **NEGATIVE)
    assert not torch.equal(wanted, generate(original, inputs, do_sample=False))
    assert torch.equal(generate(model, inputs, do_sample=False, **NEGATIVE), wanted)


@pytest.mark.slow
def test_guidance_by_padding_that_would_move_positions_is_refused(pair):
    """GPT-2 counts the padding of a negative prompt, the artefact does not."""
    original, model = pair("gpt2")
    inputs, whole = prompts(original, 2), NEGATIVE | {"negative_prompt_attention_mask": None}
    wanted = generate(original, inputs, do_sample=False, **whole)
    assert torch.equal(generate(model, inputs, do_sample=False, **whole), wanted)
    with pytest.raises(RunError, match="negative_prompt_attention_mask"):
        generate(model, inputs, do_sample=False, **NEGATIVE)


def test_guidance_of_an_encoder_decoder_is_refused(pair):
    _, model = pair("t5")
    with pytest.raises(RunError, match="guidance_scale"):
        model.generate(torch.tensor([[5, 6, 7]]), guidance_scale=2.0, max_new_tokens=2)


SPEECH = {
    "is_multilingual": True,
    "lang_to_id": {"<|en|>": 60, "<|de|>": 61},
    "task_to_id": {"transcribe": 70, "translate": 71},
    "no_timestamps_token_id": 75,
    "suppress_tokens": [5, 6],
    "begin_suppress_tokens": [9, 2],
}


@pytest.mark.slow
def test_a_generate_of_the_originals_own(pair, monkeypatch):
    """Whisper's detects the language, begins with it, takes audio of any length, and gives back what it made alone."""
    original, model = pair("whisper")
    for each in (original, model):
        monkeypatch.setattr(each, "generation_config", copy.deepcopy(each.generation_config))
        vars(each.generation_config).update(SPEECH)
    features = torch.randn(2, 8, 100, generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 100, dtype=torch.long)
    short, found = {"input_features": features[..., :32]}, []
    for options in (
        short,
        short | {"language": "de", "task": "translate", "num_beams": 2},
        short | {"return_dict_in_generate": True, "prompt_ids": torch.tensor([58, 20])},
        {"input_features": features, "attention_mask": mask, "return_timestamps": True, "temperature": (0.0, 0.4)}
        | {"logprob_threshold": -0.1},
    ):
        wanted, got = (_seeded(each, **options, max_new_tokens=12) for each in (original, model))
        wanted, got = (each if isinstance(each, torch.Tensor) else each["sequences"] for each in (wanted, got))
        assert torch.equal(got, wanted)
        found.append(wanted.tolist())
    assert found[0] != found[1] != found[2] and len(found[3][0]) > 12
    with pytest.raises(RunError, match="return_token_timestamps"):
        model.generate(**short, return_token_timestamps=True)


def _seeded(model, **options):
    torch.manual_seed(3)
    return model.generate(**options)


def test_a_mistyped_argument_is_refused(pair):
    _, model = pair("llama")
    with pytest.raises(ValueError, match="atention_mask"):
        model.generate(torch.ones(1, 3, dtype=torch.long), atention_mask=torch.ones(1, 3), max_new_tokens=2)


def test_attentions_are_refused(pair):
    _, model = pair("llama")
    with pytest.raises(RunError, match="output_attentions"):
        model.generate(torch.ones(1, 3, dtype=torch.long), output_attentions=True, return_dict_in_generate=True)


@pytest.mark.slow
def test_bounded_positions(pair):
    """To the last position as the original; one further says which dimension ends."""
    original, model = pair("gpt2")
    inputs = {"input_ids": torch.randint(5, 95, (1, 120), generator=torch.Generator().manual_seed(0))}
    wanted = generate(original, inputs, new=9, do_sample=False)
    assert torch.equal(generate(model, inputs, new=9, do_sample=False), wanted)
    with pytest.raises(RunError, match=r"^past_sequence_length is 128; model.onnx serves at most 127"):
        generate(model, inputs, new=10, do_sample=False)
    with pytest.raises(RunError, match=r"^sequence_length is 129; model.onnx serves at most 128"):
        model(torch.ones(1, 129, dtype=torch.long))
    cache = model.new_cache()
    model(inputs["input_ids"], past_key_values=cache)
    with pytest.raises(RunError, match=r"^past_sequence_length \+ sequence_length is 129; .* at most 128"):
        model(inputs["input_ids"][:, :9], past_key_values=cache)
    assert cache.get_max_length() == 128
