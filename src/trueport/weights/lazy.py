"""Tensors that know where their values lie, and read them only when asked.

transformers renames, splits, fuses and casts a checkpoint's tensors while it loads them. Given tensors of this kind it
does so without a byte read: each parameter comes out as its recipe, and most recipes are a range of a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from torch.utils._pytree import tree_map

from trueport.errors import SourceError

_aten = torch.ops.aten
TORCH_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
}  # fmt: skip
"""safetensors' names of the dtypes that a graph can point at."""

NARROW = (torch.float16, torch.bfloat16)
"""The dtypes that float32 holds exactly."""
MOVES = {
    _aten.detach.default, _aten.alias.default, _aten.clone.default, _aten.stack.default, _aten.cat.default,
    _aten.transpose.int, _aten.permute.default, _aten.view.default, _aten.slice.Tensor, _aten.select.int,
    _aten.split.Tensor, _aten.split_with_sizes.default, _aten.unsqueeze.default,
}  # fmt: skip
"""Operators that only move elements: what they give of narrow tensors, cast, is what they give of cast ones."""

PIECE = 2**24
"""Bytes of a tensor that are read together where its values are wanted one after the other."""


@dataclass(frozen=True)
class Span:
    """The bytes of one contiguous tensor in a file; ``name`` is what the file calls it, where it is a whole one of its."""

    path: Path
    offset: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    name: str = field(default="", compare=False)

    def read(self) -> torch.Tensor:
        """The values; the file is read, not mapped, so that nothing of it stays in memory.

        Raises:
            SourceError: the file is shorter than it was.
        """
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        content = torch.empty(self.nbytes, dtype=torch.uint8)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view, done = memoryview(cast("Any", content.numpy())), 0
            while done < self.nbytes:
                count = file.readinto(view[done:])
                if not count:
                    raise SourceError(f"{self.path} became shorter while it was read", "Export again.")
                done += count
        return content.view(self.dtype).view(self.shape)

    def parts(self) -> Iterator[Span]:
        """The same bytes in order, cut along the first axis into about ``PIECE`` bytes each; a single row is not cut."""
        rows = self.shape[0] if self.shape else 1
        row = self.nbytes // rows if rows else 0
        step = max(1, PIECE // row) if row else max(rows, 1)
        if step >= rows:
            yield self
            return
        for start in range(0, rows, step):
            count = min(step, rows - start)
            shape = (count, *self.shape[1:])
            yield Span(self.path, self.offset + start * row, count * row, self.dtype, shape)


class LazyTensor(torch.Tensor):
    """A tensor on the CPU without memory: a span of a file, or what an operator makes of other such tensors."""

    meta: torch.Tensor
    leaf: Span | None
    recipe: tuple[Any, Any, Any, int | None] | None

    @staticmethod
    def __new__(cls, meta: torch.Tensor, *_: Any, **__: Any) -> LazyTensor:
        """A wrapper around ``meta``'s shape, strides and dtype."""
        made: LazyTensor = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            meta.shape,
            strides=meta.stride(),
            storage_offset=meta.storage_offset(),
            dtype=meta.dtype,
            device=torch.device("cpu"),
        )
        return made

    def __init__(self, meta: torch.Tensor, leaf: Span | None, recipe: Any = None, roots: Any = None) -> None:
        """``roots`` are the spans by storage: a view of one of these storages is a part of that span."""
        self.meta, self.leaf, self.recipe = meta, leaf, recipe
        self.roots: dict[int, Span] = roots or {}
        self.overwritten = ""

    def __repr__(self) -> str:  # type: ignore[override]
        return f"LazyTensor({tuple(self.shape)}, {self.dtype}, {self.span})"

    @property
    def span(self) -> Span | None:
        """The bytes of the file that hold this very tensor, contiguous; None where none do."""
        if self.leaf is not None:
            return self.leaf
        root = self.roots.get(_storage(self.meta))
        if root is None or root.dtype != self.dtype or not self.meta.is_contiguous():
            return None
        size = self.meta.element_size()
        offset = root.offset + int(self.meta.storage_offset()) * size
        return Span(root.path, offset, self.meta.numel() * size, self.dtype, tuple(self.shape))

    @property
    def unwidened(self) -> LazyTensor | None:
        """The same tensor in the narrower float dtype that the file has, whose cast to this one is exact; or None."""
        if self.dtype != torch.float32 or self.recipe is None or not self.meta.is_contiguous():
            return None
        found = _narrowed(self)
        return found if isinstance(found, LazyTensor) and found.dtype in NARROW else None

    def evaluate(self) -> torch.Tensor:
        """The values, read and computed now."""
        span = self.span
        if span is not None:
            return span.read()
        assert self.recipe is not None
        func, args, kwargs, index = self.recipe
        result = func(*tree_map(_evaluated, args), **tree_map(_evaluated, kwargs))
        return result if index is None else result[index]

    def pieces(self) -> Iterator[torch.Tensor]:
        """The values in order, in pieces along the first axis: experts are fused one at a time."""
        if self.span is not None:
            for part in self.span.parts():
                yield part.read()
        elif self.ndim < 3:
            yield self.evaluate()
        else:
            for row in range(self.shape[0]):
                yield _row(self, row)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """What ``func`` would give, as a recipe; what is no tensor is computed."""
        kwargs = kwargs or {}
        if func is _aten.detach.default:  # of every parameter, twice
            whole: LazyTensor = args[0]
            _refuse_overwritten(whole)
            return cls(whole.meta, whole.leaf, (func, args, kwargs, None), whole.roots)
        if func._schema.is_mutable:
            return _written(func, args[0])
        tree_map(_refuse_overwritten, (args, kwargs))
        meta_kwargs = {key: "meta" if key == "device" else value for key, value in tree_map(_meta, kwargs).items()}
        try:
            results = func(*tree_map(_meta, args), **meta_kwargs)
        except (NotImplementedError, RuntimeError):
            # Shapes are not enough for what reads values, as torch.equal does: run on the values, it gives its own error.
            return func(*tree_map(_evaluated, args), **tree_map(_evaluated, kwargs))
        roots: dict[int, Span] = {}
        tree_map(lambda value: roots.update(value.roots) if isinstance(value, LazyTensor) else None, (args, kwargs))
        if isinstance(results, torch.Tensor):
            return cls(results, None, (func, args, kwargs, None), roots)
        if isinstance(results, (list, tuple)) and all(isinstance(result, torch.Tensor) for result in results):
            made = [cls(result, None, (func, args, kwargs, index), roots) for index, result in enumerate(results)]
            return type(results)(made)
        return func(*tree_map(_evaluated, args), **tree_map(_evaluated, kwargs))


def _written(func: Any, tensor: Any) -> Any:
    """A tensor that was computed and is written to: what initialises weights anew does so to a weight-normalised one.

    What it held is gone, and so it may only be thrown away.
    """
    if not isinstance(tensor, LazyTensor) or tensor.recipe is None or _storage(tensor.meta) in tensor.roots:
        raise SourceError(f"{func} writes to a weight while it is loaded")
    tensor.overwritten = str(func)
    return tensor


def _refuse_overwritten(value: Any) -> None:
    if isinstance(value, LazyTensor) and value.overwritten:
        raise SourceError(f"{value.overwritten} writes to a weight while it is loaded")


def leaf(span: Span) -> LazyTensor:
    """The tensor that a file holds."""
    meta = torch.empty(span.shape, dtype=span.dtype, device="meta")
    return LazyTensor(meta, span, roots={_storage(meta): span})


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _narrowed(value: Any) -> Any:
    """A recipe without its widening casts; None where something is computed, or was in float32 before."""
    if isinstance(value, (list, tuple)):
        parts = [_narrowed(part) for part in value]
        lost = any(part is None and before is not None for part, before in zip(parts, value, strict=True))
        return None if lost else parts
    if not isinstance(value, LazyTensor):
        return value
    if value.recipe is None:
        return value if value.dtype in NARROW else None
    func, args, kwargs, index = value.recipe
    if func == _aten._to_copy.default:
        return args[0] if args[0].dtype in NARROW and value.dtype == torch.float32 else None
    if func not in MOVES:
        return None
    narrow = _narrowed(args)
    if narrow is None:
        return None
    result = func(*narrow, **kwargs)
    return result if index is None else result[index]


def _meta(value: Any) -> Any:
    if isinstance(value, LazyTensor):
        return value.meta
    return value.to("meta") if isinstance(value, torch.Tensor) else value


def _evaluated(value: Any) -> Any:
    return value.evaluate() if isinstance(value, LazyTensor) else value


def _row(lazy: LazyTensor, row: int) -> torch.Tensor:
    """``lazy[row:row + 1]``, from no more of its sources than that needs."""
    if lazy.recipe is not None and lazy.span is None:
        func, args, kwargs, index = lazy.recipe
        if func in (_aten.detach.default, _aten.alias.default, _aten.clone.default):
            return _row(args[0], row)
        if func == _aten._to_copy.default:
            return _row(args[0], row).to(lazy.dtype)
        if func == _aten.stack.default and (args[1] if len(args) > 1 else kwargs.get("dim", 0)) == 0:
            return _evaluated(args[0][row]).unsqueeze(0)
        if func == _aten.cat.default and (args[1] if len(args) > 1 else kwargs.get("dim", 0)) > 0:
            return torch.cat([_row(part, row) for part in args[0]], args[1] if len(args) > 1 else kwargs["dim"])
        if func == _aten.transpose.int and 0 not in (args[1] % lazy.ndim, args[2] % lazy.ndim) and index is None:
            return _row(args[0], row).transpose(args[1], args[2])
    span = lazy.span
    if span is not None and span.shape[0]:
        size = span.nbytes // span.shape[0]
        return Span(span.path, span.offset + row * size, size, span.dtype, (1, *span.shape[1:])).read()
    return lazy.evaluate()[row : row + 1]
