"""The memory that a process and its children hold: what a limit is held against."""

from __future__ import annotations

import os
from pathlib import Path

KINDS = ("RssAnon:", "RssShmem:", "VmSwap:")
"""Pages that are the process's own, also where the system has put them on disk: else a limit past the machine's memory
would never be passed. Pages of mapped files are left out: the system takes them back when it needs them, and
a checkpoint that is linked is mapped whole."""


def measurable() -> bool:
    """Whether it can be measured here: on Linux, and elsewhere with psutil."""
    return memory_of(os.getpid()) is not None


def memory_of(pid: int) -> int | None:
    """Bytes that a process and all its descendants hold; 0 when it is gone, None where nobody can tell."""
    if Path("/proc/self/status").exists():
        return sum(_own(found) for found in _tree(pid))
    try:
        import psutil
    except ImportError:
        return None
    try:
        process = psutil.Process(pid)
        return int(sum(found.memory_info().rss for found in [process, *process.children(recursive=True)]))
    except psutil.Error:
        return 0


def _own(pid: int) -> int:
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as status:
            return sum(int(line.split()[1]) * 1024 for line in status if line.startswith(KINDS))
    except (OSError, ValueError, IndexError):
        return 0


def _tree(pid: int) -> list[int]:
    found = [pid]
    for parent in found:  # grows while it is walked
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                with open(f"/proc/{parent}/task/{thread}/children", encoding="ascii") as children:
                    found.extend(int(word) for word in children.read().split())
            except OSError:
                continue
    return found
