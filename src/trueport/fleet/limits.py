"""What one model may cost: time, memory, processors, and how often it is tried again."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
BYTES = {"B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


@dataclass(frozen=True)
class Limits:
    """Of one entry.

    Attributes:
        seconds: after which its process is stopped; None for no end.
        memory: bytes past which it is stopped, mapped files not counted; None for no end.
        retries: further attempts after one that may only have been unlucky.
        cpus: threads that it computes with, and processors that Ray keeps for it; None leaves it to the engine.
    """

    seconds: float | None = None
    memory: int | None = None
    retries: int = 2
    cpus: int | None = None


KEYS = ("time", "memory", "retries", "cpus")
"""What a plan calls them."""


def read_limits(table: Mapping[str, Any]) -> Limits:
    """The limits among an entry's keys.

    Raises:
        ValueError: ``(key, problem, remedy)`` in its arguments.
    """
    found: dict[str, Any] = {}
    if "time" in table:
        found["seconds"] = _time(table["time"])
    if "memory" in table:
        found["memory"] = _memory(table["memory"])
    for key, least in (("retries", 0), ("cpus", 1)):
        if key in table:
            value = table[key]
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(key, f"{key} = {value!r} is not a number", f"Give {least} or more.")
            found[key] = value
    return Limits(**found)


def _time(value: Any) -> float:
    remedy = 'Give seconds, or words such as "90s", "30m", "1h30m".'
    total = 0.0
    if isinstance(value, str) and re.fullmatch(r"(\d+(\.\d+)?[smhd]\s*)+", value):
        total = sum(float(count) * SECONDS[unit] for count, unit in re.findall(r"([\d.]+)([smhd])", value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        total = float(value)
    if not 0 < total < float("inf"):
        raise ValueError("time", f"time = {value!r} is no length of time", remedy)
    return total


def _memory(value: Any) -> int:
    remedy = 'Give bytes, or words such as "8GB", "500MB", "4GiB".'
    total = 0.0
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+)", value) if isinstance(value, str) else None
    if found and found[2] in BYTES:
        total = float(found[1]) * BYTES[found[2]]
    elif isinstance(value, int) and not isinstance(value, bool):
        total = value
    if not 1 <= total < float("inf"):
        raise ValueError("memory", f"memory = {value!r} is no amount of memory", remedy)
    return int(total)


def time_words(seconds: float) -> str:
    """``0.4 s``, ``38 s``, ``5 min 2 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
