"""Files that are no protobuf, or the first half of one."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest

from tests.attacks import making


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.99])
def test_truncated_file_is_refused(
    part: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    content = making.right().SerializeToString()
    path = making.folder_with(content[: int(len(content) * part)], tmp_path / "model")
    making.refused(path, "model.onnx", monkeypatch, capsys)


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\x00" * 100, b"\x0a" * 100]
)
def test_other_file_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    making.refused(making.folder_with(content, tmp_path / "model"), "model.onnx", monkeypatch, capsys)


def test_nested_a_thousand_times_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Graphs in graphs in graphs: protobuf itself stops at a depth of a hundred."""
    graph = onnx.GraphProto(name="leaf")
    data = graph.SerializeToString()
    for _ in range(1000):
        attribute = onnx.AttributeProto(name="then_branch", type=onnx.AttributeProto.GRAPH).SerializeToString()
        attribute += field(6, data)
        node = onnx.NodeProto(op_type="If", input=["c"], output=["y"]).SerializeToString() + field(5, attribute)
        data = field(1, node)
    model = onnx.ModelProto(ir_version=10, opset_import=[onnx.helper.make_opsetid("", 18)]).SerializeToString()
    making.refused(making.folder_with(model + field(7, data), tmp_path / "model"), "model.onnx", monkeypatch, capsys)


def field(number: int, content: bytes) -> bytes:
    """A length-delimited protobuf field."""
    size, varint = len(content), b""
    while size > 127:
        varint += bytes([size & 127 | 128])
        size >>= 7
    return bytes([number << 3 | 2]) + varint + bytes([size]) + content
