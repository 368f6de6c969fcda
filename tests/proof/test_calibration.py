"""The inputs that a quantisation is made on."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import trueport
from trueport.errors import TrueportError
from trueport.interface import Dimension, Interface, Tensor
from trueport.proof.calibration import BATCHES, LONGEST, Original, batches, read_prompts
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


@pytest.mark.parametrize("given", [[None], ["abc", 3], b"abc"])
def test_prompts_that_are_no_texts_are_one_line(given: Any):
    with pytest.raises(TrueportError, match="not all texts"):
        read_prompts(given, tokenizer)


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


def test_prompts_are_padded_two_by_two_and_cut():
    prompts = ((7, 8, 9), (5,), tuple(range(10, 30)))
    first, second = batches(interface(8), Original(CONFIG, "decoder", prompts))
    assert first.ids.tolist() == [[7, 8, 9], [0, 0, 5]] and first.mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert second.ids.tolist() == [list(range(10, 18))] and second.mask.all()
    (right, _) = batches(interface(8), Original(CONFIG, "encoder", prompts))
    assert right.ids.tolist() == [[7, 8, 9], [5, 0, 0]]


def test_drawn_batches_are_not_the_proofs():
    from trueport.proof import calibration

    drawn = batches(interface(), Original(CONFIG, "decoder"))
    assert len(drawn) == BATCHES and calibration.SEED != SEED
    assert not any(np.array_equal(drawn[0].ids, batch.ids) for batch in drawn[1:])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to calibrate without --quantize"),
        ({"quantize": "int4"}, "--quantize int4 is not calibrated"),
        ({"quantize": "int3"}, "There is no quantisation int3 for the target onnx"),
    ],
)
def test_a_calibration_of_nothing_is_refused_before_the_model_is_loaded(
    options: dict[str, Any], words: str, tmp_path: Path
):
    with pytest.raises(TrueportError, match=words):
        trueport.export(tmp_path / "no such model", tmp_path / "out", calibration=["a"], **options)
