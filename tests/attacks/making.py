"""A small right graph for attacks to start from, and what every command must do with an attack."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import onnx
import onnx.parser
import pytest

import trueport
from trueport.artifact import file_entry, write_json
from trueport.cli import main
from trueport.errors import TrueportError

RIGHT = """<ir_version: 10, opset_import: ["" : 18]>
g (int64[batch_size, sequence_length] input_ids, int64[batch_size, sequence_length] attention_mask)
    => (float[batch_size, sequence_length, 2] last_hidden_state)
<float[8, 2] words = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0},
 float fill = {-3.4e38}>
{
    x = Gather (words, input_ids)
    xt = Transpose <perm = [0, 2, 1]> (x)
    scores = MatMul (x, xt)
    seen = Cast <to = 9> (attention_mask)
    axis = Constant <value_ints = [1]> ()
    keys = Unsqueeze (seen, axis)
    masked = Where (keys, scores, fill)
    weights = Softmax (masked)
    last_hidden_state = MatMul (weights, x)
}"""
SECONDS = 30
"""A refusal takes no longer, loaded machine included."""


def right() -> onnx.ModelProto:
    """An encoder of one layer."""
    return onnx.parser.parse_model(RIGHT)


def external(location: str, offset: int = 0, length: int = 64) -> onnx.ModelProto:
    """The same with its weights in a file."""
    model = right()
    tensor = model.graph.initializer[0]
    del tensor.float_data[:]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return model


def folder_with(model: onnx.ModelProto | bytes, folder: Path) -> Path:
    """A folder as an export leaves it; the graph's path."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 8, "hidden_size": 2}))
    path = folder / "model.onnx"
    path.write_bytes(model if isinstance(model, bytes) else model.SerializeToString())
    return path


def own(path: Path) -> Path:
    """The folder of ``path`` as one of Trueport's, which vouches for every file in it."""
    axes = ["batch_size", "sequence_length"]
    entry = {
        "target": "onnx", "file": path.name, "depth": 10, "state": [], "guards": [],
        "dimensions": {axis: [1, None] for axis in axes},
        "inputs": [{"name": name, "dtype": "int64", "shape": axes} for name in ("input_ids", "attention_mask")],
        "outputs": [{"name": "last_hidden_state", "dtype": "float32", "shape": [*axes, 2]}],
    }  # fmt: skip
    files = {
        item.relative_to(path.parent).as_posix(): file_entry(item)
        for item in path.parent.rglob("*") if item.is_file() and not item.is_symlink()
    }  # fmt: skip
    manifest = {
        "schema_version": 1, "source": {"kind": "folder", "role": "encoder", "class": "BertModel"}, "versions": {},
        "components": {"model": entry}, "patches": [], "files": files, "proof": {"verdict": "proven"},
    }  # fmt: skip
    write_json(path.with_name("trueport.json"), manifest)
    return path.parent


def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """A command's exit code and what it says on stderr."""
    monkeypatch.setattr(sys, "argv", ["trueport", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit_:
        main()
    return int(exit_.value.code or 0), capsys.readouterr().err


def opened(folder: Path) -> str:
    """What ``trueport.load`` says to a folder."""
    with pytest.raises(TrueportError) as refusal:
        trueport.load(folder)
    return str(refusal.value)


def refused(path: Path, words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Every command that opens graphs refuses this one: one line that holds ``words``, exit code 2, in bounded time."""
    commands = [("audit", path), ("repair", path, "-o", path.with_name("fixed.onnx")), ("verify", path.parent)]
    for arguments in [*commands, ("optimize", path.parent)]:
        if arguments[0] == "optimize":
            said = opened(own(path))
            assert words in said and "\n" not in said
        start = time.monotonic()
        code, said = run(monkeypatch, capsys, *arguments)
        assert code == 2, (arguments[0], said)
        named = words in said or arguments[0] == "optimize"  # which may refuse the folder before it sees the graph
        assert named and said.count("\n") == 1 and said.startswith("trueport: "), (arguments[0], said)
        assert "fault of Trueport's" not in said
        assert time.monotonic() - start < SECONDS
        assert not path.with_name("fixed.onnx").exists()
