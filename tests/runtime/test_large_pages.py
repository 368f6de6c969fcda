"""Weights in large pages: of what was taken within, and of nothing else, and its numbers stay."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trueport.runtime import large_pages as module
from trueport.runtime.large_pages import LEAST, PAGE, _without, large_pages

SIZE = 2 * LEAST


def has_large_pages() -> bool:
    """Whether this system moves memory into large pages when it is told to."""
    if not module.SETTING.exists() or "[never]" in module.SETTING.read_text():
        return False
    return tuple(int(part) for part in Path("/proc/sys/kernel/osrelease").read_text().split("-")[0].split(".")[:2]) >= (
        6,
        1,
    )


needs_pages = pytest.mark.skipif(
    not has_large_pages(), reason="this system has no large pages, or moves nothing into them when told"
)


def _mapped(size: int) -> tuple[mmap.mmap, np.ndarray]:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(memory, np.int64)
    numbers[:] = np.arange(len(numbers))
    return memory, numbers


def large_bytes() -> int:
    """Bytes of this process in large pages."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("AnonHugePages:"))


def _large(numbers: np.ndarray) -> int:
    """Bytes in large pages of the mappings that the array lies in."""
    first, total, within = numbers.ctypes.data, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split(maxsplit=5)
        if not name.endswith(":"):
            start, end = (int(address, 16) for address in name.split("-"))
            within = start < first + numbers.nbytes and first < end
        elif within and name == "AnonHugePages:":
            total += int(rest[0]) << 10
    return total


@needs_pages
def test_memory_taken_within_lies_in_large_pages_and_keeps_its_numbers() -> None:
    with large_pages():
        _memory, numbers = _mapped(SIZE)
        assert _large(numbers) == 0
    assert _large(numbers) >= SIZE - 2 * PAGE
    assert np.array_equal(numbers, np.arange(len(numbers)))


@needs_pages
def test_memory_from_before_and_little_memory_stay_as_they_are() -> None:
    _former, before = _mapped(SIZE)
    with large_pages():
        _memory, little = _mapped(LEAST // 2)
    assert _large(before) == _large(little) == 0


@needs_pages
def test_memory_that_was_given_back_within_does_no_harm() -> None:
    with large_pages():
        memory, numbers = _mapped(SIZE)
        del numbers
        memory.close()


@needs_pages
def test_turned_off_by_the_administrator_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr(module, "SETTING", setting)
    with large_pages():
        _memory, numbers = _mapped(SIZE)
    assert _large(numbers) == 0


_spans = st.lists(st.integers(0, 60), unique=True).map(
    lambda edges: [(a, b) for a, b in zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False)]
)


@given(_spans, _spans)
def test_what_others_leave_is_what_no_other_covers(spans: list[tuple[int, int]], others: list[tuple[int, int]]) -> None:
    def places(of: list[tuple[int, int]]) -> set[int]:
        return {place for start, end in of for place in range(start, end)}

    left = list(_without(spans, others))
    assert places(left) == places(spans) - places(others)
    assert all(start < end for start, end in left)
