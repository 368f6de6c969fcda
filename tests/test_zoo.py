"""The zoo's promises: seeded, finite, sensitive to tokens and masks, able to generate."""

from __future__ import annotations

import pytest
import torch
import transformers

from tests import zoo

WIDTH, LENGTHS = 16, (16, 11, 14)
SAMPLES = (101, 71, 89)  # of which the zoo's models of sound make 16, 11 and 14 positions
NO_MASK = {"fnet", "whisper", "vit", "dinov2"}  # fnet mixes by Fourier transform; features and images are never padded
# How far back each layer may look (None: everywhere); modernbert's window reaches half to each side.
REACH = {
    "mistral": (7, 7),
    "phi3": (7, 7),
    "gemma2": (7, None),
    "gemma3_text": (7, 7, None),
    "gpt_oss": (7, None),
    "gpt_neo": (None, 7),
    "modernbert": (None, 4),
}
HEADED = [
    (name, head)
    for name in zoo.names("encoder")
    for head in ("SequenceClassification", "TokenClassification", "MaskedLM")
    # T5ForSequenceClassification is an encoder-decoder: no head of the encoder.
    if hasattr(transformers, zoo.class_name(name, head)) and (name, head) != ("t5_encoder", "SequenceClassification")
]
ENTRY = {entry.name: entry for entry in zoo.ENTRIES}
GENERATIVE = zoo.names("decoder") + zoo.names("seq2seq")

everywhere = pytest.mark.parametrize("name", zoo.names())
generative = pytest.mark.parametrize("name", GENERATIVE)


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ragged(model, side: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of three lengths, padded on ``side``, and their mask."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(len(LENGTHS), WIDTH, dtype=torch.long)
    for row, length in enumerate(LENGTHS):
        mask[row, slice(0, length) if side == "right" else slice(WIDTH - length, WIDTH)] = 1
    ids = torch.randint(5, 95, mask.shape, generator=generator)
    return torch.where(mask.bool(), ids, model.config.pad_token_id), mask


def source(model, side: str = "right") -> dict[str, torch.Tensor]:
    """The inputs of the model's first stack."""
    if model.main_input_name == "input_values":
        mask = (torch.arange(SAMPLES[0]) < torch.tensor(SAMPLES)[:, None]).long()
        return {
            "input_values": torch.randn(mask.shape, generator=torch.Generator().manual_seed(1)),
            "attention_mask": mask,
        }
    if model.main_input_name == "input_features":
        return {"input_features": torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(1))}
    if model.main_input_name == "pixel_values":
        return {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    ids, mask = ragged(model, side)
    return {"input_ids": ids} if model.config.model_type == "fnet" else {"input_ids": ids, "attention_mask": mask}


def target(name: str) -> dict[str, torch.Tensor]:
    """The decoder's inputs, for the models that have one."""
    if ENTRY[name].role != "seq2seq":
        return {}
    return {"decoder_input_ids": torch.randint(5, 95, (3, 9), generator=torch.Generator().manual_seed(2))}


@torch.no_grad()
def run(model, **inputs) -> torch.Tensor:
    """Logits where the model has a head, hidden states where it has none."""
    return model(**inputs, return_dict=True)[0]


def apart(one: torch.Tensor, other: torch.Tensor) -> float:
    """Their root mean square difference, in units of the first one's spread."""
    return float((one - other).pow(2).mean().sqrt() / one.std())


def test_table():
    assert len(set(zoo.names())) == len(zoo.ENTRIES)
    assert zoo.names("encoder") + zoo.names("decoder") + zoo.names("seq2seq") == zoo.names()
    for entry in zoo.ENTRIES:
        assert hasattr(transformers, entry.model_class) and hasattr(transformers, entry.config_class)


@everywhere
def test_seeded(name: str):
    state = torch.random.get_rng_state()
    one, same, other = zoo.build(name), zoo.build(name), zoo.build(name, seed=1)
    assert torch.equal(state, torch.random.get_rng_state())
    assert not one.training
    assert {parameter.dtype for parameter in one.parameters()} == {torch.float32}
    for key, tensor in one.state_dict().items():
        assert torch.equal(tensor, same.state_dict()[key]), key
    drawn = [key for key, parameter in one.named_parameters() if parameter.requires_grad]
    others = dict(other.named_parameters())
    for key in drawn:
        assert not torch.equal(one.get_parameter(key), others[key]), key


@everywhere
def test_amplify_leaves_ties_and_constants(name: str):
    plain, loud = zoo.build(name, amplify=None), zoo.build(name)
    assert dict(plain.named_parameters()).keys() == dict(loud.named_parameters()).keys()  # tied ones appear once
    for key, buffer in plain.named_buffers():
        assert torch.equal(buffer, loud.get_buffer(key)), key
    for key, parameter in plain.named_parameters():
        assert torch.equal(parameter, loud.get_parameter(key)) == (not parameter.requires_grad), key


@everywhere
def test_finite_and_masked(name: str):
    model = zoo.build(name)
    # A causal model cannot see padding on the right.
    inputs = source(model, "left" if ENTRY[name].role == "decoder" else "right") | target(name)
    masked = run(model, **inputs)
    assert masked.isfinite().all()
    if name in NO_MASK:
        return
    mask = inputs["attention_mask"]
    unmasked = run(model, **inputs | {"attention_mask": torch.ones_like(mask)})
    real = mask.bool() if ENTRY[name].role != "seq2seq" else torch.ones(masked.shape[:2], dtype=torch.bool)
    if "input_values" in inputs:
        real = torch.arange(WIDTH) < torch.tensor(LENGTHS)[:, None]
    # The first row is full, so its mask is the same; the second has five padded positions.
    assert apart(masked[0], unmasked[0]) < 1e-4
    assert apart(masked[1][real[1]], unmasked[1][real[1]]) > 0.05


@everywhere
def test_tokens_reach_other_positions(name: str):
    """Changing one token moves another position's output by a clear part of its spread."""
    model = zoo.build(name)
    inputs, decoder = source(model), target(name)
    before = run(model, **inputs, **decoder)
    key = next(iter(inputs))
    changed = inputs[key].clone()
    far = 8
    if key == "input_features":
        changed[:, :, 5:8] *= -1
    elif key == "input_values":
        changed[:, 20:40] *= -1
    elif key == "pixel_values":
        far = 4  # the first patch is turned over; there are four, after the class token
        changed[:, :, :4, :4] *= -1
    else:
        changed[:, 5] = (changed[:, 5] + 31) % 90 + 5
    after = run(model, **inputs | {key: changed}, **decoder)
    assert apart(before[:, far], after[:, far]) > 0.05
    if decoder:
        ids = decoder["decoder_input_ids"].clone()
        ids[:, 5] = (ids[:, 5] + 31) % 90 + 5
        after = run(model, **inputs, decoder_input_ids=ids)
        assert apart(before[:, 8], after[:, 8]) > 0.05
        assert apart(before[:, :5], after[:, :5]) < 1e-4


@generative
def test_logits_are_apart(name: str):
    model = zoo.build(name)
    logits = run(model, **source(model), **target(name))[0]
    first, second = logits.topk(2).values.unbind(-1)
    assert 0.5 < logits.std() < 20
    assert (first - second).median() > 0.05


@generative
def test_generates(name: str):
    """Twelve greedy tokens after prompts padded as the role pads them."""
    model = zoo.build(name)
    inputs = source(model, "left" if ENTRY[name].role == "decoder" else "right")
    kwargs = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    out = model.generate(**inputs, **kwargs, return_dict_in_generate=True, output_logits=True)
    new = out.sequences[:, -12:]
    assert len(out.logits) == 12 and torch.stack(out.logits).isfinite().all()
    assert new.shape == (3, 12)
    assert len(new.unique()) > 2


@pytest.mark.parametrize("name", REACH)
@torch.no_grad()
def test_windows(name: str):
    """Sliding layers see nothing beyond their window, full layers do."""
    model = zoo.build(name)
    model.set_attn_implementation("eager")
    ids = torch.randint(5, 95, (1, 24), generator=torch.Generator().manual_seed(1))
    attentions = model(input_ids=ids, output_attentions=True).attentions
    distance = (torch.arange(24)[:, None] - torch.arange(24)[None]).abs()
    assert len(attentions) == len(REACH[name])
    for attention, reach in zip(attentions, REACH[name], strict=True):
        seen = distance[attention[0].amax(0) > 0].max()
        assert seen == (23 if reach is None else reach)


@pytest.mark.parametrize(("name", "head"), HEADED)
def test_heads(name: str, head: str):
    model = zoo.build(name, head=head)
    assert type(model).__name__ == zoo.class_name(name, head)
    logits = run(model, **source(model))
    assert logits.isfinite().all()
    classes = 99 if head == "MaskedLM" else 3
    assert logits.shape == ((3, 3) if head == "SequenceClassification" else (3, WIDTH, classes))
