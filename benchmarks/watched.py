"""A process under watch: its peak memory, and its end where it takes too much of memory, time or disk."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

GB = 1e9
SECONDS = 0.02
"""Between two looks."""


@dataclass(frozen=True)
class Limits:
    """Past which a process is stopped.

    Attributes:
        memory: GB of its own; pages of mapped files, which the system takes back when it needs them, are not counted.
        seconds: from its start.
        disk: GB that it wrote.
    """

    memory: float
    seconds: float
    disk: float

    def __str__(self) -> str:
        return f"{self.memory:g} GB of memory, {self.seconds:g} s, {self.disk:g} GB written"


def watched(
    command: Sequence[str], out: Path, limits: Limits, *, environment: Mapping[str, str], folder: Path
) -> dict[str, Any]:
    """Run to the end or to a limit.

    Args:
        command: what runs; its last line goes to the result.
        out: where it writes; need not be there.
        limits: of it and its children.
        environment: of the process.
        folder: in which it runs.

    Returns:
        ``peak_gb`` of resident memory, mapped files included, ``all_seconds`` of the process, and ``printed``, or what
        ``stopped`` it, or the ``error`` with which it ended.
    """
    from trueport.fleet.memory import memory_of

    peak, stopped, start = 0.0, "", time.perf_counter()
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, env=dict(environment), cwd=folder, stdout=printed, stderr=said)
        try:
            while process.poll() is None and not stopped:
                peak = max(peak, _high_water(process.pid))
                if (memory_of(process.pid) or 0) > limits.memory * GB:
                    stopped = f"{limits.memory:g} GB"
                elif time.perf_counter() - start > limits.seconds:
                    stopped = f"{limits.seconds:g} s"
                elif _written(out) > limits.disk * GB:
                    stopped = f"{limits.disk:g} GB written"
                time.sleep(SECONDS)
        finally:
            process.kill()
            process.wait()
        result: dict[str, Any] = {"peak_gb": peak, "all_seconds": time.perf_counter() - start}
        printed.seek(0)
        said.seek(0)
        if stopped:
            return result | {"stopped": stopped}
        if process.returncode:
            lines = [line for line in said.read().splitlines() if line.strip()] or [f"exit code {process.returncode}"]
            return result | {"error": lines[-1][:200]}
        return result | {"printed": printed.read().strip().splitlines()[-1]}


def _high_water(pid: int) -> float:
    """GB of resident memory at most, by the kernel's own mark; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / GB for line in lines if line.startswith("VmHWM:")), 0.0)


def _written(out: Path) -> int:
    """Bytes of the blocks below a folder; those of a hard link are the checkpoint's."""
    total = 0
    for folder, _, names in os.walk(out):  # which passes over folders that go while it looks, as rglob does not
        for name in names:
            try:
                about = os.lstat(os.path.join(folder, name))
            except OSError:
                continue
            total += about.st_blocks * 512 if about.st_nlink == 1 else 0
    return total
