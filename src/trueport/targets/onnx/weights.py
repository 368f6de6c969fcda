"""One copy of every weight: graphs of one artefact share data files, a checkpoint's own where they can."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from trueport.dtypes import array_of
from trueport.progress import Meter
from trueport.weights.files import bring
from trueport.weights.lazy import LazyTensor
from trueport.weights.writer import Part, write

if TYPE_CHECKING:
    from trueport.targets.onnx.lower import Graph

INLINE_LIMIT = 256 * 1024 * 1024
"""A single graph whose weights are smaller, in bytes, is one self-contained file; protobuf ends at 2 GB."""
SHARED_FROM = 256
"""Tensors below this many bytes stay inside the graph."""
WORTH_TAKING = 0.5
"""Share of a file's bytes that the graphs have to use for it to come along whole."""
DTYPES = {
    ir.DataType.FLOAT: "F32", ir.DataType.FLOAT16: "F16", ir.DataType.BFLOAT16: "BF16", ir.DataType.DOUBLE: "F64",
    ir.DataType.INT64: "I64", ir.DataType.INT32: "I32", ir.DataType.INT16: "I16", ir.DataType.INT8: "I8",
    ir.DataType.UINT8: "U8", ir.DataType.BOOL: "BOOL",
}  # fmt: skip
"""safetensors' names of the dtypes that are written; a constant of another stays inside its graph."""


class WeightTensor(ir.LazyTensor):
    """A weight that no memory holds: a span of a checkpoint's file, or how it is made of such.

    Attributes:
        parameter: the captured module's name of it, whatever the graph calls it.
        span: its bytes as they lie in the file; None where it has to be computed.
        origin: what computes it.
    """

    __slots__ = ("origin", "parameter", "span")

    def __init__(self, parameter: str, origin: LazyTensor) -> None:
        dtype = ir.tensor_adapters.from_torch_dtype(origin.dtype)
        super().__init__(
            lambda: ir.tensor_adapters.TorchTensor(origin.evaluate().contiguous(), name=parameter),
            dtype=dtype, shape=ir.Shape(tuple(origin.shape)), name=parameter,
        )  # fmt: skip
        self.parameter, self.origin, self.span = parameter, origin, origin.span

    @property
    def key(self) -> Any:
        """Equal for tied weights."""
        return self.span if self.span is not None else id(self.origin)

    def pieces(self) -> Iterator[memoryview]:
        """Its bytes, in bounded pieces."""
        for piece in self.origin.pieces():
            flat: Any = array_of(piece.contiguous().reshape(-1))
            yield memoryview(flat.view("uint8"))


@dataclass
class Saved:
    """Where the weights went.

    Attributes:
        taken: the checkpoint's file by the data file's name.
        mode: ``inline``, ``clone``, ``link``, ``copy``; ``written`` where no file of a checkpoint came along.
        written: bytes in a data file of our own.
        linked: whether the weights are a checkpoint's.
    """

    taken: dict[str, Path] = field(default_factory=dict)
    mode: str = "inline"
    written: int = 0
    linked: bool = False

    def to_json(self, folder: str) -> dict[str, Any]:
        """For the manifest; a clone and a copy are the same bytes, and so are the manifests."""
        files = {f"{folder}/{name}": path.name for name, path in self.taken.items()}
        return {"linked": self.mode == "link", "files": files, "written": self.written}


def save(
    graphs: Sequence[Graph],
    folder: Path,
    mode: str = "auto",
    meter: Meter | None = None,
    *,
    worth: float = WORTH_TAKING,
) -> Saved:
    """Write ``<stem>.onnx`` for each graph and, where needed, the data files that all of them share.

    Args:
        graphs: the artefact's graphs.
        folder: an existing folder.
        mode: how a checkpoint's files come along, one of ``files.MODES``; ``auto`` leaves small single graphs whole.
        meter: told of bytes as they are done.
        worth: the share of a checkpoint's file that the graphs have to use for it to come along.
    """
    values = [value for graph in graphs for value in graph.model.graph.initializers.values()]
    tensors = {_key(value.const_value): value.const_value for value in values if value.const_value is not None}
    linked = any(isinstance(tensor, WeightTensor) for tensor in tensors.values())
    total = sum(tensor.nbytes for tensor in tensors.values())
    saved = Saved()
    if len(graphs) > 1 or total > INLINE_LIMIT or (linked and mode != "auto"):
        # transformers.js looks for <graph>.onnx_data and .onnx_data_1; the last graph holds most of the weights.
        saved = _externalize(values, folder, f"{graphs[-1].stem}.onnx_data", mode, meter or Meter(), worth)
        saved.linked = linked
    for graph in graphs:
        ir.save(graph.model, folder / f"{graph.stem}.onnx")
    return saved


def _key(tensor: Any) -> Any:
    return tensor.key if isinstance(tensor, WeightTensor) else id(tensor)


def _externalize(values: Sequence[ir.Value], folder: Path, stem: str, mode: str, meter: Meter, worth: float) -> Saved:
    """Point the large initializers at files that lie in ``folder``."""
    large = [value for value in values if _is_large(value.const_value)]
    names: dict[Path, str] = {}
    saved = Saved(mode="written")
    for path in _worth_taking(large, worth):
        names[path] = stem + (f"_{len(names)}" if names else "")
    rest = [value for value in large if _path(value) not in names]
    parts, placed = _parts(rest)
    meter.start("weights", sum(path.stat().st_size for path in names) + sum(part.nbytes for part in parts))
    for path, name in names.items():
        saved.mode = bring(path, folder / name, mode, meter.add)
        saved.taken[name] = path
    for value in large:
        span = getattr(value.const_value, "span", None)
        if span is not None and span.path in names:
            _point(value, folder / names[span.path], span.offset)
    if rest:
        own = folder / (stem + (f"_{len(names)}" if names else ""))
        offsets = write(own, parts, meter.add)
        for value, name in zip(rest, placed, strict=True):
            _point(value, own, offsets[name])
        saved.written = sum(part.nbytes for part in parts)
    return saved


def _is_large(tensor: Any) -> bool:
    return tensor is not None and tensor.nbytes >= SHARED_FROM and tensor.dtype in DTYPES


def _path(value: ir.Value) -> Path | None:
    """The checkpoint's file that holds a weight as it is."""
    span = getattr(value.const_value, "span", None)
    return None if span is None else span.path


def _worth_taking(values: Sequence[ir.Value], worth: float) -> list[Path]:
    """The checkpoint's files of which the graphs use enough, in order of their names."""
    used: dict[Path, int] = {}
    spans: set[Any] = {getattr(value.const_value, "span", None) for value in values} - {None}
    for span in spans:
        used[span.path] = used.get(span.path, 0) + span.nbytes
    return sorted(path for path, count in used.items() if count >= worth * path.stat().st_size)


def _parts(values: Sequence[ir.Value]) -> tuple[list[Part], list[str]]:
    """What a file of our own has to hold, equal tensors once, and for each value its name there."""
    parts: dict[Any, Part] = {}
    placed, taken = [], set[str]()
    for value in values:
        tensor: Any = value.const_value
        if isinstance(tensor, WeightTensor):
            key, content = tensor.key, tensor.span or tensor.pieces
        else:
            key, content = hashlib.sha256(tensor.tobytes()).digest(), _whole(tensor)
        if key not in parts:
            name = str(value.name)
            while name in taken:
                name = f"shared.{name}"
            taken.add(name)
            shape = tuple(int(size) for size in tensor.shape.numpy())
            parts[key] = Part(name, DTYPES[tensor.dtype], shape, tensor.nbytes, content)
        placed.append(parts[key].name)
    return list(parts.values()), placed


def _whole(tensor: Any) -> Any:
    return lambda: iter((tensor.tobytes(),))


def _point(value: ir.Value, data: Path, offset: int) -> None:
    tensor: Any = value.const_value
    value.const_value = ir.ExternalTensor(
        data.name, offset, tensor.nbytes, tensor.dtype,
        shape=ir.Shape(tuple(tensor.shape.numpy())), name=value.name or "", base_dir=data.parent,
    )  # fmt: skip
