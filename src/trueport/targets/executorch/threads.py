"""The one pool of threads that all ExecuTorch programs of a process share."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from trueport.errors import ArtifactError


class Pool:
    """A program keeps the pool that there was when it was loaded, so that none is made anew beneath it.

    ExecuTorch 1.4.1 takes the old pool away all the same, and the program's next run ends the process.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users: weakref.WeakSet[object] = weakref.WeakSet()

    @contextmanager
    def of(self, user: object, threads: int | None) -> Iterator[None]:
        """Within, ``user`` loads a program, which then runs on so many threads; None takes those that there are.

        Raises:
            ArtifactError: another program is loaded that runs on another number.
        """
        from executorch.extension.pybindings.portable_lib import _threadpool_get_thread_count, _unsafe_reset_threadpool

        with self._lock:
            # Asked in any case: the portable kernels would make the pool when they run, and tell of the processor.
            count = _threadpool_get_thread_count()
            if threads is not None and threads != count:
                if self._users:
                    gc.collect()
                if self._users:
                    raise ArtifactError(
                        f"All ExecuTorch programs of a process share their threads, and one is loaded with {count} of them; "
                        f"this one asks for {threads}",
                        "Give all the same threads=, or load each in a process of its own.",
                    )
                _unsafe_reset_threadpool(threads)
            yield
            self._users.add(user)


POOL = Pool()
"""Of this process."""
