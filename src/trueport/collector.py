"""Python's cycle collector, which looks at all that torch and transformers imported whenever a graph's objects are many,
for cycles of a few megabytes: half a second each time. ExecuTorch's lowering took more memory with fewer collections, and is
left alone."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FACTOR = 20
"""How much rarer full collections are; young cycles are collected as ever."""
_lock = threading.Lock()
_within = 0
_before = gc.get_threshold()


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within, full collections are rarer, and none follows at once. The setting is the process's: the first to come changes
    it, the last to go sets it back. Nothing is frozen: rewriting looks for functions among what the collector knows."""
    global _within, _before
    with _lock:
        if not _within:
            _before = gc.get_threshold()
            gc.set_threshold(*_before[:2], _before[2] * FACTOR)
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                gc.set_threshold(*_before)
                if not gc.get_freeze_count():
                    gc.freeze()  # which sets the counts to 0; what the process froze itself would not stay so
                    gc.unfreeze()
