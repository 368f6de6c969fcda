"""What a ``for`` runs over: a tensor's rows, a range, ``enumerate`` and ``zip`` of these, or any Python iterable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from trueport.rewrite.region import is_traced


def _symbolic(length: Any) -> bool:
    return isinstance(length, torch.SymInt) or is_traced(length)


def _operand(number: Any) -> Any:
    """A number for use within a loop's graph, where a symbolic one would be unknown."""
    if not isinstance(number, torch.SymInt):
        return number
    symbolic: Any = number
    return torch.full((), symbolic, dtype=torch.int64)


class Items:
    """An iterable that can also be had as tensors with an axis of iterations in front."""

    symbolic = False
    width = 1
    """Columns."""

    def __init__(self, source: Any = ()) -> None:
        self.source = source

    def unrolled(self) -> Iterable[Any]:
        """The items, in Python."""
        return self.source

    def __iter__(self) -> Iterator[Any]:
        return iter(self.unrolled())

    def columns(self) -> list[torch.Tensor]:
        """Tensors (iterations, ...)."""
        # A Python iterable beside a symbolic one cannot be had by a symbolic index unless it is numbers.
        return [torch.as_tensor(list(self.source))]

    def length(self) -> Any:
        """Iterations, an int or a symbolic one."""
        return min((column.shape[0] for column in self.columns()), key=str)

    def at(self, index: torch.Tensor) -> list[torch.Tensor]:
        """The row of each column at ``index``, an int64 tensor of shape ()."""
        return [column.index_select(0, index.reshape(1)).squeeze(0) for column in self.columns()]

    def pack(self, row: Sequence[torch.Tensor]) -> Any:
        """The item, from one row of each column."""
        return row[0]

    @staticmethod
    def range(*bounds: Any) -> Items:
        """As ``range``."""
        return Range(*bounds) if any(_symbolic(bound) for bound in bounds) else Items(range(*map(int, bounds)))

    @staticmethod
    def enumerate(source: Items, start: int) -> Items:
        """As ``enumerate``."""
        if source.symbolic:
            return Zip([Range.like(source.length(), start), source])
        return Items(enumerate(source.unrolled(), start))

    @staticmethod
    def zip(sources: Sequence[Items], strict: bool) -> Items:
        """As ``zip``."""
        if any(source.symbolic for source in sources):
            return Zip(sources)
        return Items(zip(*(source.unrolled() for source in sources), strict=strict))


class Rows(Items):
    """A tensor's rows."""

    def __init__(self, source: torch.Tensor) -> None:
        super().__init__(source)
        self.symbolic = isinstance(source.shape[0], torch.SymInt)

    def columns(self) -> list[torch.Tensor]:
        """The tensor itself."""
        return [self.source]


class Range(Items):
    """Numbers up to a bound that is known when the graph runs; in the loop each is an int64 tensor of shape ()."""

    symbolic = True

    def __init__(self, *bounds: Any) -> None:
        super().__init__()
        numbers = [bound.item() if isinstance(bound, torch.Tensor) else bound for bound in bounds]
        self.start, stop, self.step = (0, *numbers, 1) if len(numbers) == 1 else (*numbers, 1)[:3]
        sign = -1 if not isinstance(self.step, torch.SymInt) and self.step < 0 else 1
        # Bounds may lie the wrong way round: no iteration then.
        self.count = torch.sym_max(0, (stop - self.start + self.step - sign) // self.step)
        self.scale, self.offset = (_operand(number) for number in (self.step, self.start))

    @staticmethod
    def like(count: Any, start: int) -> Range:
        """As many numbers."""
        numbers = Range(start, start + count)
        numbers.count = count
        return numbers

    def length(self) -> Any:
        """Iterations."""
        return self.count

    def at(self, index: torch.Tensor) -> list[torch.Tensor]:
        """The number."""
        return [index * self.scale + self.offset]

    def columns(self) -> list[torch.Tensor]:
        """The numbers, (iterations,)."""
        return [torch.arange(self.count) * self.step + self.start]


class Zip(Items):
    """Several in step; the shortest ends the loop, so symbolic lengths are cut to it."""

    symbolic = True

    def __init__(self, sources: Sequence[Items]) -> None:
        super().__init__()
        self.sources = sources
        self.width = sum(source.width for source in sources)

    def length(self) -> Any:
        """Iterations of the shortest."""
        lengths = [source.length() for source in self.sources]
        shortest = lengths[0]
        for length in lengths[1:]:
            shortest = shortest if str(length) == str(shortest) else torch.sym_min(shortest, length)
        return shortest

    def at(self, index: torch.Tensor) -> list[torch.Tensor]:
        """The rows of all sources."""
        return [row for source in self.sources for row in source.at(index)]

    def columns(self) -> list[torch.Tensor]:
        """All columns, cut to the shortest."""
        shortest = self.length()
        found = [column for source in self.sources for column in source.columns()]
        return [column if str(column.shape[0]) == str(shortest) else column[:shortest] for column in found]

    def pack(self, row: Sequence[torch.Tensor]) -> Any:
        """A tuple, nested as the sources are."""
        packed, start = [], 0
        for source in self.sources:
            packed.append(source.pack(row[start : start + source.width]))
            start += source.width
        return tuple(packed)


def items(source: Any) -> Items:
    """Anything that a ``for`` can run over."""
    if isinstance(source, Items):
        return source
    if isinstance(source, torch.Tensor) and is_traced(source) and source.ndim > 0:
        return Rows(source)
    return Items(source)
