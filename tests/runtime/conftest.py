"""Folders as an export writes them, each built once for the session."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from tests import zoo
from trueport import roles
from trueport.capture import capture
from trueport.runtime import load
from trueport.targets.onnx.lower import lower
from trueport.targets.onnx.weights import save


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def write_artefact(name: str, folder: Path) -> Path:
    """A folder of the zoo's model, without a proof."""
    model = zoo.build(name)
    graphs = [lower(capture(component)) for component in roles.components(model)]
    (folder / "onnx").mkdir(parents=True)
    save(graphs, folder / "onnx")
    components = {
        graph.name: {"target": "onnx", "file": f"onnx/{graph.stem}.onnx"} | graph.interface.to_json()
        for graph in graphs
    }
    manifest = {"schema_version": 1, "source": {"role": roles.role_of(model)}, "components": components}
    (folder / "trueport.json").write_text(json.dumps(manifest))
    model.config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a zoo's model by name."""
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = write_artefact(name, tmp_path_factory.mktemp("artefacts") / name)
        return made[name]

    return get


@pytest.fixture(scope="session")
def pair(artefact: Callable[[str], Path]) -> Callable[[str], tuple[Any, Any]]:
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
