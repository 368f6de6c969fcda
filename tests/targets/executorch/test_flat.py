"""Files of weights beside a program, in which a bit has turned: refused, where ExecuTorch ends the process."""

from __future__ import annotations

import random
import struct
from pathlib import Path

import pytest

from trueport.errors import ArtifactError

pytest.importorskip("executorch")
from executorch.exir._serialize.data_serializer import DataEntry, DataPayload
from executorch.exir.scalar_type import ScalarType
from executorch.exir.tensor_layout import TensorLayout
from executorch.extension.flat_tensor.serialize.serialize import FlatTensorSerializer

from trueport.targets.executorch.flat import HEADER, check_data


@pytest.fixture(scope="module")
def right() -> bytes:
    """A tensor, and what XNNPACK packed, as ExecuTorch writes them."""
    layout = TensorLayout(ScalarType.FLOAT, [2, 3], [0, 1])
    entries = {"weight": DataEntry(0, 16, layout), "packed": DataEntry(1, 16, None)}
    return bytes(FlatTensorSerializer().serialize(DataPayload([bytes(24), b"x" * 40], entries)))


def asked(content: bytes, path: Path) -> bool:
    """Whether it is taken; what is not is told in one line."""
    path.write_bytes(content)
    try:
        check_data(path)
    except ArtifactError as error:
        assert "model.ptd is no file of weights, or cut short or broken" in str(error)
        return False
    return True


def test_what_executorch_writes_is_taken_whole_and_no_part_of_it(right: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.ptd"
    assert asked(right, path)
    assert not any(asked(right[:size], path) for size in (0, 1, 40, 47, 60, len(right) // 2))


def test_offsets_that_lead_out_of_the_file_are_refused(right: bytes, tmp_path: Path) -> None:
    """Words of the flatbuffer, each made far too large; what is left are the numbers that nobody follows."""
    _, _, begin, size, *_ = HEADER.unpack_from(right, 8)
    taken = []
    for place in range(0, begin + size - 4, 4):
        content = bytearray(right)
        struct.pack_into("<I", content, place, 0x7FFFFFF0)
        taken += [place] if asked(bytes(content), tmp_path / "model.ptd") else []
    assert len(taken) < (begin + size) / 4 / 3


def test_random_damage_is_one_line_or_none(right: bytes, tmp_path: Path) -> None:
    rng = random.Random(0)
    for _ in range(300):
        content = bytearray(right)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(content) - 64)] = rng.randrange(256)
        asked(bytes(content), tmp_path / "model.ptd")
