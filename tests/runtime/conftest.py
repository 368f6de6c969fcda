"""Exports of the zoo beside their originals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests import zoo
from tests.conftest import Exported
from trueport.runtime import load


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def artefact(exported: Exported) -> Exported:
    """The folder of a zoo's model by name; do not change it."""
    return exported


@pytest.fixture(scope="session")
def pair(artefact: Exported) -> Callable[[str], tuple[Any, Any]]:
    """The original and the loaded artefact by name."""
    made: dict[str, tuple[Any, Any]] = {}

    def get(name: str) -> tuple[Any, Any]:
        if name not in made:
            made[name] = (zoo.build(name), load(artefact(name), threads=1))
        return made[name]

    return get


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    """The words ``w4`` to ``w98``, one token each."""
    special = ["<pad>", "<s>", "</s>", "<unk>"]
    words = {word: index for index, word in enumerate(special + [f"w{index}" for index in range(4, 99)])}
    inner = Tokenizer(WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
