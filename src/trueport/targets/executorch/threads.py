"""The one pool of threads that all ExecuTorch programs of a process share."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Pool:
    """Nothing runs while the pool is made anew: ExecuTorch 1.4.1 ends the process where something does."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._resizing = False

    @contextmanager
    def used(self) -> Iterator[None]:
        """Within, a program runs; several may."""
        with self._changed:
            self._changed.wait_for(lambda: not self._resizing)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    def resize(self, threads: int) -> None:
        """Another number of threads for all programs, when those that run have ended."""
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

        with self._changed:
            self._changed.wait_for(lambda: not self._resizing)
            self._resizing = True
            try:
                self._changed.wait_for(lambda: not self._running)
                _unsafe_reset_threadpool(threads)
            finally:
                self._resizing = False
                self._changed.notify_all()


POOL = Pool()
"""Of this process."""
