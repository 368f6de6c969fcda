"""The inputs that a quantisation is made on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import trueport
from tests.conftest import EXAMPLES
from trueport.errors import TrueportError
from trueport.interface import Dimension, Interface, Tensor
from trueport.proof.calibration import (
    BATCHES,
    LONGEST,
    Original,
    answered,
    batches,
    calibrating,
    judging,
    prompts_of,
    read_prompts,
)
from trueport.proof.run import SEED

SHAPE = ("batch_size", "sequence_length")
CONFIG = SimpleNamespace(vocab_size=50, pad_token_id=0, eos_token_id=1)


def tokenizer(text: str) -> dict[str, list[int]]:
    return {"input_ids": [ord(char) % 40 + 5 for char in text]}


def interface(longest: int | None = None) -> dict[str, Interface]:
    inputs = tuple(Tensor(name, "int64", SHAPE) for name in ("input_ids", "attention_mask"))
    sizes = (Dimension("batch_size", 1), Dimension("sequence_length", 1, longest))
    return {"model": Interface(inputs, (Tensor("logits", "float32", (*SHAPE, 50)),), sizes)}


def test_prompts_come_from_a_file_or_as_they_are(tmp_path: Path):
    (tmp_path / "prompts").write_text("abc\n\nde\n", encoding="utf-8")
    wanted = (tuple(tokenizer("abc")["input_ids"]), tuple(tokenizer("de")["input_ids"]))
    assert read_prompts(tmp_path / "prompts", tokenizer) == wanted
    assert read_prompts(["abc", "", "de"], tokenizer) == wanted


@pytest.mark.parametrize(
    ("content", "prompts"),
    [
        (b"\xef\xbb\xbfabc\r\nde", ["abc", "de"]),  # a byte order mark, as editors of Windows write it
        ("a\u2028b\x0cc\x85d\nde\n".encode(), ["a\u2028b\x0cc\x85d", "de"]),
    ],
)
def test_a_prompt_is_a_line_of_the_file(content: bytes, prompts: list[str], tmp_path: Path):
    (tmp_path / "prompts").write_bytes(content)
    assert read_prompts(tmp_path / "prompts", tokenizer) == read_prompts(prompts, tokenizer)


@pytest.mark.parametrize(
    "given", [[None], ["abc", 3], b"abc", 5, True, {"abc": 1}, {"abc"}, object(), ["\ud800 half a pair"]]
)
def test_prompts_that_are_no_texts_are_one_line(given: Any):
    with pytest.raises(TrueportError, match="not all texts"):
        read_prompts(given, tokenizer)


@pytest.mark.parametrize("given", ["a\0b", "Once upon a time", "", "a" * 5000])
def test_a_text_in_place_of_a_list_is_no_traceback(given: str):
    with pytest.raises(TrueportError, match="cannot be read") as raised:
        read_prompts(given, tokenizer)
    assert "or a list of texts" in str(raised.value) and len(str(raised.value)) < 300


def test_a_prompt_that_comes_twice_is_one():
    """Or it would be calibrated on and judge what came out."""
    assert read_prompts(["abc", "abc", "de", "abc"], tokenizer) == read_prompts(["abc", "de"], tokenizer)


def test_a_long_prompt_is_cut_and_no_stranger_is_asked():
    """Forty thousand tokens take 6 GB for one head's scores; a graph of any length bounds nothing by itself."""
    (batch,) = batches(interface(), Original(CONFIG, "decoder", ((7,) * 40_000,)))
    assert batch.ids.shape == (1, LONGEST)
    with pytest.raises(TrueportError, match="hold the token 50; the model knows 50 tokens"):
        batches(interface(), Original(CONFIG, "decoder", ((7, 50),)))


@pytest.mark.parametrize(
    ("content", "reads", "words"),
    [
        (None, tokenizer, "cannot be read: No such file"),
        (b"\xff\xfe\xff", tokenizer, "it is not UTF-8"),
        (b"\n \n", tokenizer, "has no prompts"),
        (b"abc", None, "no tokenizer"),
    ],
)
def test_what_cannot_be_read_is_one_line(content: bytes | None, reads: Any, words: str, tmp_path: Path):
    if content is not None:
        (tmp_path / "prompts").write_bytes(content)
    with pytest.raises(TrueportError, match=words):
        read_prompts(tmp_path / "prompts", reads)


@pytest.mark.parametrize("role", ["decoder", "encoder"])
def test_prompts_are_read_one_at_a_time_and_cut(role: str):
    """What stands under a mask is computed too, and is none of what a scale should be chosen on."""
    given = batches(interface(8), Original(CONFIG, role, ((7, 8, 9), (5,), tuple(range(10, 30)))))
    assert [batch.ids.tolist() for batch in given] == [[[7, 8, 9]], [[5]], [list(range(10, 18))]]
    assert all(batch.mask.all() for batch in given)


def test_no_more_prompts_are_calibrated_on_than_are_enough(monkeypatch: pytest.MonkeyPatch):
    from trueport.proof import calibration

    monkeypatch.setattr(calibration, "ENOUGH", 4)
    given = batches(interface(), Original(CONFIG, "decoder", ((7, 8, 9), (5,), (6, 7), (8,))))
    assert [batch.ids.tolist() for batch in given] == [[[7, 8, 9]], [[5]]]


def test_no_prompt_judges_what_was_made_on_it():
    prompts = ((1,), (2,), (3,))
    assert (calibrating(prompts), judging(prompts)) == (((1,), (3,)), ((2,),))
    assert (calibrating(prompts[:1]), judging(prompts[:1])) == (((1,),), ()) and judging(()) == calibrating(()) == ()


def test_reading_prompts_leaves_the_tokenizer_as_it_was():
    """An export saves it afterwards: with padding and truncation written into it, it is not the original's."""
    from transformers import AutoTokenizer

    reader = AutoTokenizer.from_pretrained(EXAMPLES / "llama-tales")
    source = SimpleNamespace(tokenizer=reader, model=SimpleNamespace(config=SimpleNamespace(vocab_size=384)))
    before = reader.backend_tokenizer.to_str()
    assert prompts_of(["Once upon a time", "a"], source)
    assert reader.backend_tokenizer.to_str() == before


def test_a_model_that_reads_no_tokens_takes_no_prompts():
    source = SimpleNamespace(tokenizer=tokenizer, model=SimpleNamespace(main_input_name="input_features"))
    with pytest.raises(TrueportError, match="reads no tokens"):
        prompts_of(["abc"], source)


def test_drawn_batches_are_not_the_proofs():
    from trueport.proof import calibration

    drawn = batches(interface(), Original(CONFIG, "decoder"))
    assert len(drawn) == BATCHES and calibration.SEED != SEED
    assert not any(np.array_equal(drawn[0].ids, batch.ids) for batch in drawn[1:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to calibrate without --quantize"),
        ({"quantize": "int3"}, "There is no quantisation int3 for the target onnx"),
    ],
)
def test_a_calibration_of_nothing_is_refused_before_the_model_is_loaded(
    options: dict[str, Any], words: str, tmp_path: Path
):
    with pytest.raises(TrueportError, match=words):
        trueport.export(tmp_path / "no such model", tmp_path / "out", calibration=["a"], **options)


def test_behind_given_sources_a_decoder_reads_what_it_says():
    """Drawn targets are nothing that it meets in use."""
    sizes = (Dimension("batch_size", 1), Dimension("sequence_length", 1), Dimension("encoder_sequence_length", 1))
    ids, mask = (
        Tensor(f"{name}", "int64", ("batch_size", "encoder_sequence_length"))
        for name in ("input_ids", "attention_mask")
    )
    encoder = Interface((ids, mask), (Tensor("state", "float32", (*ids.shape, 4)),), sizes)
    decoder = Interface((Tensor("input_ids", "int64", SHAPE),), (Tensor("logits", "float32", (*SHAPE, 50)),), sizes)
    config = SimpleNamespace(**vars(CONFIG), decoder_start_token_id=0)

    def forward(batch: Any) -> dict[str, np.ndarray]:
        """The token behind each is the next number."""
        return {"logits": np.eye(50)[(batch.target + 1) % 50]}

    prompts = ((5, 6, 7), (8, 9))
    original = Original(config, "seq2seq", prompts)
    given = batches({"encoder": encoder, "decoder": decoder}, original)
    rows = [batch.target.tolist() for batch in answered(given, original, forward)]
    assert rows == [[[0, 1]]] * 2, "it ends at the token 1"
    assert [batch.ids.tolist() for batch in given] == [[[5, 6, 7]], [[8, 9]]]
    for other, words in ((Original(config, "seq2seq"), forward), (original, lambda batch: {"last_hidden_state": 0})):
        assert answered(given, other, words) == given
