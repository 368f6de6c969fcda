"""Every way in which a safetensors file, an index or a config.json can be broken is told before it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from trueport.checkpoint import INDEX, MAX_HEADER, SINGLE, check_safetensors, check_weights, read_config, weights_digest
from trueport.errors import SourceError

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4, dtype=torch.int64), "c": torch.zeros(0, 5)}


def _file(folder: Path, name: str = SINGLE) -> Path:
    path = folder / name
    save_file(TENSORS, path, metadata={"format": "pt"})
    return path


def _header(path: Path) -> dict[str, dict[str, object]]:
    content = path.read_bytes()
    return json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])


def _with_header(path: Path, header: object) -> None:
    """The same tensors under another header."""
    content = path.read_bytes()
    data = content[8 + int.from_bytes(content[:8], "little") :]
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _edited(path: Path, name: str, **fields: object) -> None:
    header = _header(path)
    header[name] = {**header[name], **fields}
    _with_header(path, header)


def _refused(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        check_safetensors(path)
    text = str(caught.value)
    assert "\n" not in text
    assert str(path) in text
    return text


def test_a_whole_file_names_its_tensors(tmp_path):
    assert check_safetensors(_file(tmp_path)) == {"a", "b", "c"}


@pytest.mark.parametrize("cut", [1, 17, 40])
def test_a_truncated_file(tmp_path, cut):
    path = _file(tmp_path)
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-cut])
    assert f"truncated: its header promises {size} bytes, the file has {size - cut}. Download" in _refused(path)


@pytest.mark.parametrize(
    ("keep", "says"), [(0, "0 bytes"), (7, "7 bytes"), (8, "header"), (50, "truncated: its header")]
)
def test_a_file_cut_in_its_header(tmp_path, keep, says):
    path = _file(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    assert says in _refused(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git lfs pull"),
        (b"<!DOCTYPE html><html>Not found</html>", "not a safetensors file"),
        ((MAX_HEADER + 1).to_bytes(8, "little") + b"{" + bytes(99), "not a safetensors file"),
        ((2).to_bytes(8, "little") + b"[]", "not a JSON object"),
        ((2).to_bytes(8, "little") + b"{]", "not JSON"),
        ((3).to_bytes(8, "little") + b'"\xff"', "not JSON"),
        ((200_000).to_bytes(8, "little") + b'{"a":' + b"[" * 199_995, "not JSON"),
    ],
)
def test_what_is_no_safetensors_file(tmp_path, content, says):
    path = tmp_path / SINGLE
    path.write_bytes(content)
    assert says in _refused(path)


@pytest.mark.parametrize(
    ("name", "fields", "says"),
    [
        ("a", {"data_offsets": [0, 9999]}, "offsets of a do not fit"),
        ("a", {"data_offsets": [24, 0]}, "do not fit"),
        ("a", {"data_offsets": [-4, 20]}, "a lacks"),
        ("a", {"data_offsets": [0]}, "a lacks"),
        ("a", {"data_offsets": [0, True]}, "a lacks"),
        ("a", {"shape": [3, 3]}, "do not fit"),
        ("a", {"shape": "6"}, "a lacks"),
        ("a", {"dtype": 7}, "a lacks"),
        ("a", {"data_offsets": [16, 40]}, "overlaps"),
        ("a", {"dtype": "NEW", "data_offsets": [32, 9999]}, "truncated"),
        ("a", {"dtype": "NEW", "data_offsets": [40, 56]}, "hole"),
        ("a", {"dtype": "NEW", "data_offsets": [32, 40]}, "16 bytes follow"),
    ],
)
def test_offsets_that_do_not_fit(tmp_path, name, fields, says):
    path = tmp_path / SINGLE
    save_file({"a": TENSORS["a"], "b": TENSORS["b"]}, path)  # b, of 32 bytes, lies before a, of 24
    _edited(path, name, **fields)
    assert says in _refused(path)


def test_a_header_of_a_hundred_megabytes_is_not_read(tmp_path):
    """Nor parsed, which could take 25 times as much memory."""
    path = tmp_path / SINGLE
    with path.open("wb") as stream:
        stream.write((10**8).to_bytes(8, "little") + b'{"a":[')
        stream.truncate(8 + 10**8)
    assert "has a header of 100,000,000 bytes, and Trueport reads 32,000,000 at most." in _refused(path)


def test_a_tensor_that_is_no_object(tmp_path):
    path = _file(tmp_path)
    _with_header(path, {"a": 3})
    assert "a lacks" in _refused(path)


def test_a_name_that_occurs_twice(tmp_path):
    path = _file(tmp_path)
    text = json.dumps(_header(path))
    _with_header(path, (text[:-1] + ', "a": ' + json.dumps(_header(path)["a"]) + "}").encode())
    assert "twice" in _refused(path)


def test_names_cannot_write_to_the_terminal(tmp_path):
    path = _file(tmp_path)
    _with_header(path, {"\x1b[2J\nevil": 3})
    assert _refused(path).isprintable()


def _sharded(folder: Path) -> Path:
    for shard, names in (("one.safetensors", ["a"]), ("two.safetensors", ["b", "c"])):
        save_file({name: TENSORS[name] for name in names}, folder / shard)
    places = {"a": "one.safetensors", "b": "two.safetensors", "c": "two.safetensors"}
    (folder / INDEX).write_text(json.dumps({"weight_map": places}))
    return folder


def _weights_refused(folder: Path, config: dict[str, object] | None = None) -> str:
    with pytest.raises(SourceError) as caught:
        check_weights(folder, config or {})
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_all_shards_are_there(tmp_path):
    assert [path.name for path in check_weights(_sharded(tmp_path), {})] == ["one.safetensors", "two.safetensors"]


def test_a_missing_shard(tmp_path):
    (_sharded(tmp_path) / "two.safetensors").unlink()
    assert "lacks 1 shard of 2: two.safetensors" in _weights_refused(tmp_path)


def test_a_truncated_shard(tmp_path):
    path = _sharded(tmp_path) / "two.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert "two.safetensors is truncated" in _weights_refused(tmp_path)


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": {"a": 1}}', '{"weight_map": []}']
)
def test_a_broken_index(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    assert INDEX in _weights_refused(tmp_path)


@pytest.mark.parametrize(
    "shard", ["../one.safetensors", "/etc/passwd", "sub/one.safetensors", "one.bin", "a\n.safetensors"]
)
def test_an_index_cannot_leave_its_folder(tmp_path, shard):
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert "not a safetensors file beside it" in _weights_refused(tmp_path)


def test_a_weight_that_two_shards_hold(tmp_path):
    """With the same values it does not matter which counts; with others, readers disagree."""
    folder = _sharded(tmp_path)
    rival = folder / "two.safetensors"
    save_file({name: TENSORS[name] for name in ("a", "b", "c")}, rival)
    assert len(check_weights(folder, {})) == 2
    for values in (TENSORS["a"] + 1, TENSORS["a"].double(), TENSORS["a"][:1].clone()):
        save_file({"a": values, "b": TENSORS["b"], "c": TENSORS["c"]}, rival)
        with pytest.raises(SourceError, match=r"one\.safetensors and two\.safetensors both hold a, with other values"):
            check_weights(folder, {})


def test_an_index_that_promises_too_much(tmp_path):
    index = json.loads((_sharded(tmp_path) / INDEX).read_text())
    index["weight_map"]["d"] = "one.safetensors"
    (tmp_path / INDEX).write_text(json.dumps(index))
    assert "one.safetensors lacks d" in _weights_refused(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "model.pt", "last.ckpt"])
def test_pickles_are_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04.")
    text = _weights_refused(tmp_path)
    assert name in text
    assert "pickle" in text
    assert "safetensors" in text


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "has no model.safetensors"),
        (["training_args.bin", "optimizer.pt"], "has no model.safetensors"),
        (["model.gguf"], "only as model.gguf"),
        (["consolidated.safetensors"], "consolidated.safetensors but no model.safetensors"),
        (["shard-00000-model-00001-of-00002.safetensors"], "distributed"),
    ],
)
def test_no_weights(tmp_path, names, says):
    for name in names:
        (tmp_path / name).write_bytes(b"")
    assert says in _weights_refused(tmp_path)


def test_weights_that_the_config_names(tmp_path):
    path = _file(tmp_path, "other.safetensors")
    assert check_weights(tmp_path, {"transformers_weights": "other.safetensors"}) == [path]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, "has no config.json"),
        ("", "not JSON"),
        ("{'a': 1}", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "holds list"),
        ("3", "holds int"),
        ("{}", "names no model_type"),
        ('{"model_type": 3}', "names no model_type"),
        ('{"model_type": ""}', "names no model_type"),
    ],
)
def test_a_broken_config(tmp_path, content, says):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(SourceError, match=says) as caught:
        read_config(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_adapter(tmp_path):
    for name in ("config.json", "adapter_config.json"):
        (tmp_path / name).write_text('{"model_type": "bert"}')
    with pytest.raises(SourceError, match="merge_and_unload"):
        read_config(tmp_path)


def test_the_digest_sees_values_names_and_dtypes():
    def digest(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_digest(module)

    one = torch.arange(4.0).reshape(2, 2)
    assert digest(a=one, b=one) == digest(b=one.clone(), a=one.t().contiguous().t())
    others = [
        digest(a=one, c=one),
        digest(a=one, b=one.t()),
        digest(a=one, b=one.half()),
        digest(a=one, b=one.flatten()),
    ]
    assert len({digest(a=one, b=one), *others}) == 5
    assert digest(a=torch.tensor(3.0), b=torch.zeros(0, dtype=torch.bfloat16))


def test_a_folder_whose_name_is_not_utf8(tmp_path: Path) -> None:
    """Neither tokenizers nor safetensors opens what lies there; they said that the files were damaged."""
    folder = tmp_path / "m\udcff"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(SourceError, match="is not UTF-8"):
        read_config(folder)
