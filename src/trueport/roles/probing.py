"""Which axes of a module's inputs can have other lengths, found by running it with other lengths."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import nn

from trueport.errors import CaptureError

Axis = tuple[str, int]
"""(input, axis)."""
Unit = frozenset[Axis]
"""Axes that move together for certain: those of the tensors of one list, of equal shape."""
Feeds = Mapping[str, torch.Tensor]
Runs = Callable[[Feeds], Mapping[str, torch.Tensor]]

LARGEST = 1024
"""A length up to which a bound is looked for by doubling."""
FARTHEST = 8192
"""A length up to which the module's own sizes are tried as bounds."""
PATIENCE = 2.0
"""Seconds that one such run may take."""
FAILURES = (RuntimeError, IndexError, ValueError, TypeError, AssertionError, KeyError, AttributeError, ArithmeticError)
"""How modules refuse sizes."""


@contextmanager
def itself(model: nn.Module, over: str) -> Iterator[None]:
    """The model runs over this much, without gradients.

    Raises:
        CaptureError: it does not, unpatched, so that there is nothing to export.
    """
    try:
        with torch.no_grad():
            yield
    except FAILURES as error:
        raise CaptureError(f"{type(model).__name__} does not run over {over} itself: {refusal(error)}") from error


def refusal(error: Exception) -> str:
    """A failure in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


@dataclass(frozen=True)
class Found:
    """The axes that can be dynamic, as expressions of dimension numbers: ``{("x", 1): (0,), ("mask", 1): (0, 1)}``.

    ``feeds`` is the sample, its axes of length 0 and 1 lengthened where that was possible.
    """

    axes: Mapping[Axis, tuple[int, ...]]
    feeds: dict[str, torch.Tensor]


class Probe:
    """Runs a module on samples of other lengths.

    Args:
        call: tensors by name to tensors by name.
    """

    def __init__(self, call: Runs) -> None:
        self.call = call
        self.seconds = 0.0
        self.refusal = ""

    def runs(self, feeds: Feeds) -> bool:
        """Whether the module takes these; ``refusal`` says why not."""
        start = time.perf_counter()
        try:
            with torch.no_grad():
                self.call(feeds)
        except FAILURES as error:
            self.refusal = refusal(error)
            return False
        finally:
            self.seconds = time.perf_counter() - start
        return True


def resized(tensor: torch.Tensor, shape: Iterable[int]) -> torch.Tensor:
    """The tensor cut or repeated to another shape, so that its values stay legal; what was empty becomes N(0, 1)."""
    wanted = tuple(shape)
    if tensor.numel() == 0 and 0 not in wanted:
        if not tensor.is_floating_point():
            return torch.zeros(wanted, dtype=tensor.dtype)
        return torch.randn(wanted, generator=torch.Generator().manual_seed(0)).to(tensor.dtype)
    for axis, length in enumerate(wanted):
        if tensor.shape[axis] != length:
            if length == 0:
                tensor = tensor.narrow(axis, 0, 0)
            else:
                tensor = tensor.index_select(axis, torch.arange(length) % tensor.shape[axis])
    return tensor.contiguous()


def find_axes(probe: Probe, feeds: Feeds) -> Found:
    """Try each axis: alone, and with those of equal length; then those whose length is a sum of others."""
    sample = _lengthened(probe, dict(feeds))
    axes: dict[Axis, tuple[int, ...]] = {}
    count, left = 0, list[Unit]()
    for length, pool in _classes(sample).items():
        while length > 1 and (together := _movable(probe, sample, pool)):
            axes |= dict.fromkeys(_joined(together), (count,))
            count += 1
            pool = [unit for unit in pool if unit not in together]
        left += pool
    axes |= _sums(probe, sample, left, count)
    return Found(axes, sample)


def _family(name: str) -> str:
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def _classes(feeds: Feeds) -> dict[int, list[Unit]]:
    """Units by length."""
    grouped: dict[tuple[str, tuple[int, ...], int], list[Axis]] = {}
    for name, tensor in feeds.items():
        for axis in range(tensor.ndim):
            grouped.setdefault((_family(name), tuple(tensor.shape), axis), []).append((name, axis))
    classes: dict[int, list[Unit]] = {}
    for (_, shape, axis), members in grouped.items():
        classes.setdefault(shape[axis], []).append(frozenset(members))
    return classes


def _joined(units: Iterable[Unit]) -> set[Axis]:
    return {axis for unit in units for axis in unit}


def _moved(feeds: Feeds, units: Iterable[Unit], by: int = 1) -> dict[str, torch.Tensor]:
    """The sample with these axes longer."""
    moved = _joined(units)
    return {
        name: resized(tensor, [size + by * ((name, axis) in moved) for axis, size in enumerate(tensor.shape)])
        for name, tensor in feeds.items()
    }


def _lengthened(probe: Probe, feeds: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Axes of length 0 and 1 made longer, as many together as go: alone, a 1 may merely broadcast."""
    for length, by in ((0, 3), (1, 1)):
        pool = _classes(feeds).get(length, [])
        while pool:
            together = next((s for s in [pool, *_candidates(pool)] if probe.runs(_moved(feeds, s, by))), None)
            if together is None:
                break
            feeds = _moved(feeds, together, by)
            pool = [unit for unit in pool if unit not in together]
    return feeds


def _candidates(pool: list[Unit]) -> Iterable[list[Unit]]:
    """Sets of units that may belong together, the likeliest first."""
    if len(pool) > 1:
        yield from ([unit] for unit in pool)
    for position in sorted({axis for _, axis in _joined(pool)}):
        yield [unit for unit in pool if all(axis == position for _, axis in unit)]
    yield pool
    if len(pool) > 2:
        for unit in pool:
            yield [other for other in pool if other is not unit]
    if 2 < len(pool) < 9:
        for size in range(2, len(pool) - 1):
            yield from (list(chosen) for chosen in combinations(pool, size))


def _movable(probe: Probe, feeds: Feeds, pool: list[Unit]) -> list[Unit]:
    """A smallest set of units that grows by one while all else stays; empty where there is none."""
    for chosen in _candidates(pool):
        if chosen and probe.runs(_moved(feeds, chosen)):
            for unit in list(chosen):
                fewer = [other for other in chosen if other is not unit]
                if fewer and probe.runs(_moved(feeds, fewer)):
                    chosen = fewer
            return chosen
    return []


def _sums(probe: Probe, feeds: Feeds, left: list[Unit], count: int) -> dict[Axis, tuple[int, ...]]:
    """Axes as long as several others together, such as a mask over past and new tokens."""

    def length(unit: Unit) -> int:
        name, axis = next(iter(unit))
        return feeds[name].shape[axis]

    axes: dict[Axis, tuple[int, ...]] = {}
    for total in left:
        parts = [u for u in left if length(u) < length(total) and probe.runs(_moved(feeds, [u, total]))]
        if not parts or sum(map(length, parts)) != length(total):
            continue
        numbers = []
        for part in parts:
            axes |= dict.fromkeys(part, (count,))
            numbers.append(count)
            count += 1
        axes |= dict.fromkeys(total, tuple(numbers))
    return axes


def smallest(runs: Callable[[int], bool], start: int, largest: int = 17) -> int | None:
    """The length from which on the module runs; None where it runs at none of the short ones."""
    return next((length for length in range(start, largest + 1) if runs(length)), None)


def longest(probe: Probe, runs: Callable[[int], bool], start: int, own: Iterable[int]) -> int | None:
    """The length past which the module refuses, None where nothing bounds it.

    Args:
        probe: its clock says when to stop.
        runs: whether the module takes a length.
        start: a length that it takes.
        own: sizes of the module's parameters and buffers, any of which may be the bound.
    """
    good = start
    while good < LARGEST:
        if not runs(good * 2):
            return _between(runs, good, good * 2)
        good *= 2
        if probe.seconds * 4 > PATIENCE:
            return None
    pace = probe.seconds / good**2
    for bound in sorted({size for size in own if good <= size <= FARTHEST}):
        if pace * bound**2 > PATIENCE:
            break
        if not runs(bound + 1):
            return bound if runs(bound) else _between(runs, good, bound)
        good = bound
    return None


def _between(runs: Callable[[int], bool], good: int, bad: int) -> int:
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if runs(middle) else (good, middle)
    return good
