"""Weights in large pages: of what was taken within, and of nothing else, and its numbers stay."""

from __future__ import annotations

import ctypes
import mmap
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trueport.runtime import large_pages as module
from trueport.runtime.large_pages import LEAST, large_pages

SIZE = 4 * LEAST


def has_large_pages() -> bool:
    """Whether this system moves memory into large pages when it is told to, and not by itself."""
    setting = module.SETTINGS / "enabled"
    if not setting.exists() or "[madvise]" not in setting.read_text():
        return False
    release = Path("/proc/sys/kernel/osrelease").read_text().split("-")[0]
    return tuple(map(int, release.split(".")[:2])) >= (6, 1)


needs_pages = pytest.mark.skipif(
    not has_large_pages(), reason="this system has no large pages, or gives them unasked, or only in its own time"
)


def _mapped(size: int) -> tuple[mmap.mmap, np.ndarray]:
    """Memory with numbers in it, and nothing beside it: the system tells of neighbours that are alike as of one."""
    memory = mmap.mmap(-1, size + 2 * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    numbers = np.frombuffer(memory, np.int64, size // 8, mmap.PAGESIZE)
    libc = ctypes.CDLL(None)
    for edge in (numbers.ctypes.data - mmap.PAGESIZE, numbers.ctypes.data + size):
        assert libc.mprotect(ctypes.c_void_p(edge), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
    return memory, numbers


def large_bytes() -> int:
    """Bytes of this process in large pages."""
    rollup = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) << 10 for line in rollup if line.startswith("AnonHugePages:"))


def large(numbers: np.ndarray) -> int:
    return told(numbers, "AnonHugePages:")


def held(numbers: np.ndarray) -> int:
    return told(numbers, "Anonymous:")


def told(numbers: np.ndarray, what: str) -> int:
    """Bytes that the system tells of the mappings that the array lies in."""
    first, total, within = numbers.ctypes.data, 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        name, *rest = line.split(maxsplit=5)
        if not name.endswith(":"):
            start, end = (int(address, 16) for address in name.split("-"))
            within = start < first + numbers.nbytes and first < end
        elif within and name == what:
            total += int(rest[0]) << 10
    return total


@needs_pages
def test_memory_taken_within_lies_in_large_pages_and_keeps_its_numbers() -> None:
    with large_pages():
        _memory, numbers = _mapped(SIZE)
        numbers[:] = np.arange(len(numbers))
        assert large(numbers) == 0
    assert large(numbers) >= SIZE - 2 * module._size()
    assert np.array_equal(numbers, np.arange(len(numbers)))


@needs_pages
def test_memory_from_before_and_little_memory_stay_as_they_are() -> None:
    """In a process of its own: what any thread fills within counts, and these tests' process may have others."""
    run = subprocess.run([sys.executable, __file__], capture_output=True, text=True, timeout=60, check=True)
    assert run.stdout.split() == ["0", "0"]


def before_and_little() -> tuple[int, int]:
    """Bytes in large pages of memory that was filled before, and of little that was filled within."""
    _former, before = _mapped(SIZE)
    before[:] = 1
    with large_pages():
        _memory, little = _mapped(LEAST // 2)
        little[:] = 1
    return large(before), large(little)


@needs_pages
def test_memory_that_was_given_back_within_does_no_harm() -> None:
    with large_pages():
        memory, numbers = _mapped(SIZE)
        numbers[:] = 1
        del numbers
        memory.close()


@needs_pages
def test_turned_off_by_the_administrator_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "enabled").write_text("always madvise [never]\n")
    (tmp_path / "hpage_pmd_size").write_text("2097152\n")
    monkeypatch.setattr(module, "SETTINGS", tmp_path)
    with large_pages():
        _memory, numbers = _mapped(SIZE)
        numbers[:] = 1
    assert large(numbers) == 0


def test_where_the_system_does_not_tell_nothing_happens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(module, "SELF", tmp_path)
    with large_pages():
        assert module._size() == 0


@needs_pages
def test_what_is_filled_in_part_takes_no_more_memory() -> None:
    with large_pages():
        _memory, numbers = _mapped(SIZE)
        numbers[: len(numbers) // 2] = 1
        some = held(numbers)
    assert large(numbers) >= SIZE // 2 - 2 * module._size()
    assert held(numbers) == some


@needs_pages
def test_what_is_filled_anew_of_memory_that_was_freed_counts() -> None:
    _memory, before = _mapped(SIZE)
    before[:] = 1
    _memory.madvise(mmap.MADV_DONTNEED)
    with large_pages():
        before[:] = 7
    assert large(before) >= SIZE - 2 * module._size() and (before == 7).all()


if __name__ == "__main__":
    print(*before_and_little())
