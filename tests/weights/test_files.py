"""Files that come along: links, copies that keep their holes, and file systems that can do neither."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from trueport.checkpoint import check_safetensors
from trueport.errors import ArtifactError
from trueport.weights import files
from trueport.weights.files import bring, copy_range
from trueport.weights.lazy import Span
from trueport.weights.writer import Part, write

HOLE = 64 * 2**20


@pytest.fixture
def sparse(tmp_path: Path) -> Path:
    """A file with data, a hole, and data."""
    path = tmp_path / "sparse"
    with path.open("wb") as stream:
        stream.write(b"begin")
        stream.seek(HOLE)
        stream.write(b"end")
    os.utime(path, ns=(10**18, 10**18))
    return path


@pytest.mark.parametrize("mode", ["auto", "copy"])
@pytest.mark.parametrize("kernel", [True, False])
def test_a_copy_is_the_same_and_as_sparse(sparse, tmp_path, monkeypatch, mode, kernel):
    if not kernel:

        def refuse(*_: object) -> int:
            raise OSError(errno.EXDEV, "another file system")

        monkeypatch.setattr(os, "copy_file_range", refuse)
    told: list[int] = []
    assert bring(sparse, tmp_path / "out", mode, told.append) in ("clone", "copy")
    assert (tmp_path / "out").read_bytes() == sparse.read_bytes()
    assert (tmp_path / "out").stat().st_blocks <= sparse.stat().st_blocks + 16
    assert (tmp_path / "out").stat().st_mtime_ns == 10**18
    assert (tmp_path / "out").stat().st_nlink == 1
    assert 0 < sum(told) <= HOLE + 3


def test_a_file_that_is_one_hole(tmp_path):
    path = tmp_path / "hole"
    with path.open("wb") as stream:
        stream.truncate(1000)
    bring(path, tmp_path / "out", "copy", lambda count: None)
    assert (tmp_path / "out").read_bytes() == bytes(1000)


def test_a_link_has_no_bytes_of_its_own_and_follows_the_hub_s_symlinks(sparse, tmp_path):
    (tmp_path / "symlink").symlink_to(sparse)
    assert bring(tmp_path / "symlink", tmp_path / "out", "link", lambda count: None) == "link"
    assert (tmp_path / "out").stat().st_ino == sparse.stat().st_ino
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize(
    ("number", "says"),
    [(errno.EXDEV, "different file systems"), (errno.EPERM, "not permitted"), (errno.EMLINK, "Too many links")],
)
def test_a_file_system_without_hard_links(sparse, tmp_path, monkeypatch, number, says):
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(ArtifactError, match=rf"{says}.*--weights copy") as caught:
        bring(sparse, tmp_path / ".out.trueport-7" / "onnx" / "data", "link", lambda count: None)
    assert str(sparse) in str(caught.value) and ".trueport-7" not in str(caught.value)


def test_a_full_disk_is_not_taken_for_a_file_system_that_cannot(sparse, tmp_path, monkeypatch):
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    monkeypatch.setattr(files, "_clone", lambda *_: False)
    with pytest.raises(OSError, match="full"):
        bring(sparse, tmp_path / "out", "auto", lambda count: None)


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_that_ends_too_early(tmp_path, monkeypatch, kernel):
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range")
    (tmp_path / "short").write_bytes(b"12345")
    with (
        (tmp_path / "short").open("rb", buffering=0) as reading,
        (tmp_path / "out").open("wb", buffering=0) as writing,
        pytest.raises(ArtifactError, match="became shorter"),
    ):
        copy_range(reading, 2, writing, 0, 9, lambda count: None)


def test_a_file_of_our_own_is_safetensors(tmp_path):
    (tmp_path / "other").write_bytes(b"xx" + torch.arange(32.0).numpy().tobytes())
    span = Span(tmp_path / "other", 2, 128, torch.float32, (4, 8))
    parts = [
        Part("odd", "I64", (1,), 8, lambda: iter((torch.tensor([7]).numpy().tobytes(),))),
        Part("pieces", "U8", (3, 64), 192, lambda: iter(bytes([i]) * 64 for i in range(3))),
        Part("span", "F32", (4, 8), 128, span),
        Part("empty", "F32", (0, 3), 0, lambda: iter(())),
    ]
    path = tmp_path / "own"
    offsets = write(path, parts, lambda count: None)
    assert check_safetensors(path) == {"odd", "pieces", "span", "empty"}
    assert offsets["span"] % 64 == offsets["pieces"] % 64 == 0
    with safe_open(path, framework="pt") as opened:
        assert torch.equal(opened.get_tensor("span"), torch.arange(32.0).reshape(4, 8))
        assert opened.get_tensor("pieces")[2, 5] == 2
        assert opened.get_tensor("odd").item() == 7
    assert path.read_bytes()[offsets["odd"] :][:1] == b"\7"
