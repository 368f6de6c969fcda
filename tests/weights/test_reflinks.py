"""A file system with reflinks, which few machines have at hand: made in a file, and mounted where that is allowed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from trueport.resident import release, resident
from trueport.weights.files import bring
from trueport.weights.linked import open_checkpoint
from trueport.weights.mapped import Maps

SIZE = 16 * 2**20


@pytest.fixture
def btrfs(tmp_path: Path) -> Iterator[Path]:
    image, place = tmp_path / "image", tmp_path / "mounted"
    if shutil.which("mkfs.btrfs") is None or os.getuid():
        pytest.skip("needs btrfs-progs, and root to mount")
    with image.open("wb") as file:
        file.truncate(256 * 2**20)
    place.mkdir()
    subprocess.run(["mkfs.btrfs", "-q", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(place)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _free(place: Path) -> int:
    os.sync()
    found = os.statvfs(place)
    return found.f_bavail * found.f_frsize


def test_a_clone_has_no_bytes_and_follows_no_change(btrfs: Path) -> None:
    from safetensors.numpy import save_file

    values = np.random.default_rng(3).standard_normal(SIZE // 4).astype(np.float32)
    source, target = btrfs / "source.safetensors", btrfs / "target.safetensors"
    save_file({"x": values}, source)
    content, free = source.read_bytes(), _free(btrfs)
    assert bring(source, target, "auto", lambda count: None) == "clone"
    assert free - _free(btrfs) < SIZE // 4 and target.stat().st_nlink == 1
    maps = Maps()
    mapped = maps.tensor(open_checkpoint([target]).tensors["x"])
    total = float(mapped.double().sum())
    before = resident()[1]
    release(maps.places)
    assert before - resident()[1] > 0.9 * SIZE and float(mapped.double().sum()) == total
    with source.open("r+b") as file:
        file.seek(-4096, os.SEEK_END)
        file.write(bytes(4096))
    assert target.read_bytes() == content
    del mapped, maps
