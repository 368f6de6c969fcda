"""Measurements as data: each in its own process, contenders in turns, medians over the rounds."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 3600
Run = dict[str, Any]
Tell = Callable[[str], None]


def interleaved(tasks: dict[str, Run], rounds: int, tell: Tell) -> dict[str, list[Run]]:
    """Every contender once in each round, in alternating order, so that a slow minute falls on all of them.

    Args:
        tasks: what to tell the worker, by contender.
        rounds: how many times.
        tell: told of each process before it starts.
    """
    runs: dict[str, list[Run]] = {name: [] for name in tasks}
    for number in range(rounds):
        names = list(tasks) if number % 2 == 0 else list(reversed(tasks))
        for name in names:
            tell(f"round {number + 1} of {rounds}: {name}")
            runs[name].append(measure(tasks[name]))
    return runs


def measure(task: Run) -> Run:
    """The worker's result in a fresh process; a failure is a result too, ``{"error": its last line}``."""
    command = [sys.executable, "-m", "benchmarks.worker", json.dumps(task)]
    environment = os.environ | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return {"error": f"took more than {TIMEOUT} s"}
    if done.returncode == 0:
        return json.loads(done.stdout.strip().splitlines()[-1])
    lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or [f"exit code {done.returncode}"]
    return {"error": lines[-1][:300]}


def median(runs: Sequence[Run], key: str) -> float | None:
    """The median over the runs that worked; None when none did."""
    values = [run[key] for run in runs if "error" not in run]
    return statistics.median(values) if values else None


def spread(runs: Sequence[Run], key: str) -> tuple[float, float] | None:
    """Smallest and largest over the runs that worked."""
    values = [run[key] for run in runs if "error" not in run]
    return (min(values), max(values)) if values else None


def machine() -> dict[str, Any]:
    """What a reader needs to judge the figures; no names."""
    import importlib.metadata

    names = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
    pages, size = os.sysconf("SC_PHYS_PAGES"), os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(pages * size / 2**30),
        "load_at_start": round(os.getloadavg()[0], 1),
        "python": ".".join(map(str, sys.version_info[:3])),
        "versions": {name: importlib.metadata.version(name) for name in names},
    }
