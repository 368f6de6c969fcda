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
_froze = False


@contextmanager
def rare_collections() -> Iterator[None]:
    """Within, full collections are rarer, and look only at what was made within. The setting is the process's: the first to
    come changes it, the last to go sets it back. What the process froze itself stays frozen."""
    global _within, _before, _froze
    with _lock:
        if not _within:
            _before = gc.get_threshold()
            gc.set_threshold(*_before[:2], _before[2] * FACTOR)
            _froze = not gc.get_freeze_count()
            if _froze:
                gc.freeze()
        _within += 1
    try:
        yield
    finally:
        with _lock:
            _within -= 1
            if not _within:
                gc.set_threshold(*_before)
                if _froze:
                    gc.freeze()  # which sets the counts to 0: a full collection would follow at once
                    gc.unfreeze()
