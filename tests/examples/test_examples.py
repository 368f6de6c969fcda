"""The checkpoints under ``examples/models`` load the ordinary way and do their task."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MODELS = EXAMPLES / "models"
# The scripts are run by path, so they import their neighbours by bare name.
sys.path.insert(0, str(EXAMPLES))

import dates_data  # noqa: E402
import reviews_data  # noqa: E402
import tales_data  # noqa: E402
import train_bert  # noqa: E402
import train_dates  # noqa: E402
import train_llama  # noqa: E402

# Not a seed of the training scripts, so these samples took no part in any choice made there.
SEED = 4242
FOLDERS = ("t5-dates", "llama-tales", "bert-sentiment")
GENERATORS: tuple[Callable[..., Iterator[Any]], ...] = (
    dates_data.samples,
    tales_data.samples,
    reviews_data.samples,
)


def test_dates_are_written_in_iso_form() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "t5-dates")
    model = AutoModelForSeq2SeqLM.from_pretrained(MODELS / "t5-dates")
    pairs = list(islice(dates_data.samples(SEED, held_out=True), 100))
    assert (tokenizer([text for text, _ in pairs], padding=True, return_tensors="pt").attention_mask == 0).any()
    assert sum(train_dates.correct(model, tokenizer, pairs)) >= 98


def test_tales_follow_the_grammar() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "llama-tales")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "llama-tales")
    openings = [opening for opening, _ in islice(tales_data.samples(SEED, held_out=True), 40)]
    mask = tokenizer(openings, padding=True, return_tensors="pt").attention_mask
    assert (mask[:, 0] == 0).any() and (mask[:, -1] == 1).all()
    assert sum(train_llama.correct(model, tokenizer, openings)) >= 36


def test_padding_does_not_change_a_tale() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "llama-tales")
    model = AutoModelForCausalLM.from_pretrained(MODELS / "llama-tales")
    openings = [opening for opening, _ in islice(tales_data.samples(SEED + 1, held_out=True), 3)]
    together = model.generate(**tokenizer(openings, padding=True, return_tensors="pt"))
    alone = [model.generate(**tokenizer(opening, return_tensors="pt"))[0] for opening in openings]
    assert tokenizer.batch_decode(together, skip_special_tokens=True) == tokenizer.batch_decode(
        alone, skip_special_tokens=True
    )


def test_reviews_get_the_right_verdict() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "bert-sentiment")
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / "bert-sentiment")
    assert tuple(model.config.id2label[index] for index in range(3)) == reviews_data.LABELS
    reviews = list(islice(reviews_data.samples(SEED, held_out=True), 500))
    assert sum(train_bert.correct(model, tokenizer, reviews)) >= 485


@torch.no_grad()
def test_word_order_decides_a_review() -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "bert-sentiment")
    model = AutoModelForSequenceClassification.from_pretrained(MODELS / "bert-sentiment")
    texts = [
        "The soup was not good but the service was great.",
        "The soup was great but the service was not good.",
        "The soup was great and the service was not good.",
    ]
    verdicts = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(dim=-1).tolist()
    assert [model.config.id2label[verdict] for verdict in verdicts] == ["positive", "negative", "mixed"]


@pytest.mark.parametrize("folder", FOLDERS)
def test_checkpoint_is_small_and_holds_no_pickle(folder: str) -> None:
    files = [path for path in (MODELS / folder).rglob("*") if path.is_file()]
    assert {path.suffix for path in files} == {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in files) < 1_000_000


@pytest.mark.parametrize("folder", FOLDERS)
def test_checkpoint_names_no_path_of_the_machine(folder: str) -> None:
    for path in (MODELS / folder).glob("*.json"):
        text = path.read_text(encoding="utf-8")
        assert "_name_or_path" not in text
        assert str(EXAMPLES.parent) not in text and str(Path.home()) + "/" not in text


@pytest.mark.parametrize("samples", GENERATORS)
def test_generators_are_deterministic(samples: Callable[..., Iterator[Any]]) -> None:
    first = list(islice(samples(SEED, held_out=True), 200))
    assert first == list(islice(samples(SEED, held_out=True), 200))
    assert first != list(islice(samples(SEED + 1, held_out=True), 200))


@pytest.mark.parametrize("samples", GENERATORS)
def test_held_out_samples_are_never_trained_on(samples: Callable[..., Iterator[Any]]) -> None:
    held_out = {sample[0] for sample in islice(samples(SEED, held_out=True), 300)}
    trained = {sample[0] for sample in islice(samples(SEED, held_out=False), 3000)}
    assert held_out.isdisjoint(trained)


def test_date_forms() -> None:
    when = dates_data.date(1998, 5, 3)
    assert dates_data.write(when, "{weekday} the {nth} of {month} {year}") == "Sunday the 3rd of May 1998"
    assert [dates_data.ordinal(day) for day in (1, 12, 22, 23, 30)] == ["1st", "12th", "22nd", "23rd", "30th"]
    assert [dates_data.ordinal_word(day) for day in (3, 20, 21, 30, 31)] == [
        "third",
        "twentieth",
        "twenty-first",
        "thirtieth",
        "thirty-first",
    ]


def test_grammar_accepts_its_own_tales_and_no_others() -> None:
    tales = [f"{opening} {rest}" for opening, rest in islice(tales_data.samples(SEED, held_out=False), 500)]
    assert all(tales_data.follows_grammar(tale) for tale in tales)
    tale = (
        "Once there was a shy fox called Otto. One evening, he found a key on the hill. "
        'A crow came by and asked, "Is that your key, Otto?" '
        "So Otto gave the key to the crow. That night he slept well, and the crow did too."
    )
    assert tales_data.follows_grammar(tale)
    for right, wrong in (("a key on", "a lamp on"), ("night he", "night she"), (", Otto?", ", Max?"), (" too.", "")):
        assert not tales_data.follows_grammar(tale.replace(right, wrong))
