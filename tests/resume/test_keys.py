"""Whatever changes a component changes its key."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests import zoo
from trueport.interface import Dimension, Interface, Tensor
from trueport.resume import keys
from trueport.resume.keys import component_key, key_of
from trueport.roles import Component
from trueport.source import load_source

OPTIONS: dict[str, Any] = {"opset": None, "stamp": True, "quantize": None, "meter": object(), "proof_memory": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("keys") / "checkpoint"
    zoo.build("distilbert").save_pretrained(where)
    return where


def key(folder: Path, hashes: Any = None, **options: Any) -> str | None:
    source = load_source(folder, tokenizer=None, link=True)
    return key_of(source, OPTIONS | options, hashes)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file of a package that has a part in every component."""
    package = tmp_path / "trueport_part"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(keys, "CODE", ("trueport_part", "not_installed"))
    return package / "__init__.py"


def test_the_same_export_has_the_same_key(folder):
    """Whatever it has been told to tell, and whatever memory its proof takes."""
    first = key(folder)
    assert first is not None
    assert first == key(folder, meter=object(), proof_memory=4, calibration="elsewhere.txt", weights="copy")


def test_an_option_counts(folder):
    assert len({key(folder), key(folder, opset=22), key(folder, quantize="int8"), key(folder, prompts=((1, 2),))}) == 4


def test_the_hashes_of_a_paranoid_export_count(folder):
    assert key(folder) != key(folder, {folder / "model.safetensors": "00"}) != key(folder, {folder: "01"})


def test_what_is_installed_counts_file_by_file(folder, code, monkeypatch):
    """A package that was edited in place has the version that it had."""
    found = {key(folder)}
    code.write_text("x = 1\n")
    found.add(key(folder))
    os.utime(code, ns=(1, 1))
    found.add(key(folder))
    (code.parent / "more.py").write_text("")
    found.add(key(folder))
    monkeypatch.setenv("PYTORCH_SOMETHING", "1")
    found.add(key(folder))
    monkeypatch.setenv("PYTHONHASHSEED", "12")
    found.add(key(folder))
    assert len(found) == 6


def test_the_packages_are_found():
    """Each of them: one that is renamed must not vanish from the key."""
    for name in keys.CODE:
        assert next(keys._code([name]), ""), name


def _touched(folder: Path) -> None:
    os.utime(folder / "model.safetensors", ns=(5, 5))


def _written(folder: Path) -> None:
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def _configured(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"activation": "relu"}))


def _accompanied(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text("{}")


@pytest.mark.parametrize("change", [_touched, _written, _configured, _accompanied])
def test_every_file_of_the_checkpoint_counts(tmp_path: Path, change: Callable[[Path], None]) -> None:
    zoo.build("distilbert").save_pretrained(tmp_path / "checkpoint")
    before = key(tmp_path / "checkpoint")
    change(tmp_path / "checkpoint")
    assert before is not None
    assert key(tmp_path / "checkpoint") != before


def test_the_dtype_counts(folder):
    half = load_source(folder, tokenizer=None, link=True, dtype="float16")
    assert key_of(half, OPTIONS) != key(folder)


def test_nothing_is_kept_of_a_model_with_code_of_its_own(folder, monkeypatch):
    assert key_of(load_source(zoo.build("distilbert"), tokenizer=None), OPTIONS) is None
    source = load_source(folder, tokenizer=None, link=True)
    assert key_of(source, OPTIONS) is not None
    monkeypatch.setattr(type(source.model), "__module__", "transformers_modules.checkpoint.modeling")
    assert key_of(source, OPTIONS) is None


def test_a_component_s_sizes_and_interface_count():
    axes = (Dimension("batch_size", 1, None),)
    interface = Interface((Tensor("x", "float32", ("batch_size", 3)),), (Tensor("y", "float32", ()),), axes)
    one = Component("model", "model", torch.nn.Linear(3, 3), interface, {"batch_size": 2})
    others = [
        replace(one, name="encoder"),
        replace(one, stem="other"),
        replace(one, sizes={"batch_size": 3}),
        replace(one, module=torch.nn.Identity()),
        replace(one, interface=replace(interface, dimensions=(Dimension("batch_size", 1, 8),))),
    ]
    found = {component_key("key", "onnx", part) for part in (one, *others)}
    assert len(found | {component_key("other", "onnx", one), component_key("key", "executorch", one)}) == 8
