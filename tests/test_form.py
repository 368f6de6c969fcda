"""A manifest that somebody edited: one line that names the part, before anybody relies on it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from trueport.form import check_form

RIGHT: dict[str, Any] = {
    "schema_version": 1,
    "source": {"role": "decoder", "task": None, "untrained": ["logits"], "reread_past": 4096},
    "components": {"model": {"target": "onnx", "file": "onnx/model.onnx", "depth": 9, "guards": [64]}},
    "files": {"onnx/model.onnx": {"sha256": "ab", "size": 3}, "onnx/model.onnx_data": {"size": 3, "mtime_ns": 5}},
    "versions": {},
    "patches": [],
    "proof": {"verdict": "proven"},
}


def test_what_an_export_writes_is_right_and_what_it_may_lack_is_completed() -> None:
    manifest = copy.deepcopy(RIGHT)
    check_form(manifest)
    assert manifest == RIGHT
    bare: dict[str, Any] = {"schema_version": 1}
    check_form(bare)
    assert bare == {"schema_version": 1, "source": {}, "components": {}, "files": {}, "proof": {}}


def named(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda manifest: manifest["files"].update({name: {"size": 1}})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.update(versions=None), "versions is not an object"),
        (lambda m: m.update(patches={}), "patches is no list"),
        (lambda m: m.update(quantize=["int8"]), "quantize is not an object"),
        (lambda m: m["source"].update(role="reader"), "source.role is none of encoder, decoder, seq2seq, custom"),
        (lambda m: m["source"].update(reread_past="9"), "source.reread_past is no whole number"),
        (lambda m: m["source"].update(reread_past=True), "source.reread_past is no whole number"),
        (lambda m: m["source"].update(untrained=[3]), "source.untrained holds something that is no text"),
        (
            lambda m: m["source"].update(role="seq2seq"),
            "source.role is seq2seq, and there is no component encoder for onnx",
        ),
        (lambda m: m["components"].update(other=m["components"].pop("model")), "no component model for onnx"),
        (lambda m: m["components"].update(model=3), "the entry of 'model' in components is not an object"),
        (lambda m: m["components"]["model"].update(depth=None), "components: 'model': depth is no whole number"),
        (lambda m: m["components"]["model"].update(guards=["x"]), "guards holds something that is no whole number"),
        (lambda m: m["components"]["model"].update(data=["x"]), "data is no text"),
        (lambda m: m["files"]["onnx/model.onnx"].update(size="3"), "size is no whole number"),
        (named("a\0b"), "a file's name holds a NUL"),
        (named("\ud800"), "a file's name is no text"),
        (named("n" * 300), "has a name that no file has"),
        (named("../out/config.json"), "is no place in the folder"),
        (named("/etc/passwd"), "is no place in the folder"),
        (named("onnx//model.onnx"), "is no place in the folder"),
        (named(""), "is no place in the folder"),
    ],
)
def test_every_other_form_is_refused_in_words(change: Callable[[dict[str, Any]], object], words: str) -> None:
    manifest = copy.deepcopy(RIGHT)
    change(manifest)
    with pytest.raises(ValueError, match=words) as caught:
        check_form(manifest)
    assert "\n" not in str(caught.value)
