"""Ctrl-C that cannot get lost.

Python raises KeyboardInterrupt wherever it is; in a destructor or in a callback of native code it prints the exception and
forgets it, and the work goes on. So an interrupt is remembered, and raised again at the next step that is told.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """While inside, SIGINT is remembered; the function given raises KeyboardInterrupt if there was one.

    Outside the main thread, where no handler can be set, and where SIGINT is ignored, nothing changes.
    """
    before = signal.getsignal(signal.SIGINT)
    pressed = threading.Event()

    def check() -> None:
        if pressed.is_set():
            raise KeyboardInterrupt

    if before is not signal.default_int_handler or threading.current_thread() is not threading.main_thread():
        yield check
        return

    def handle(number: int, frame: Any) -> None:
        pressed.set()
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, handle)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def held(*, too_late: bool = False) -> Iterator[None]:
    """While inside, Ctrl-C waits for the end; for what is to be done whole and takes moments.

    Args:
        too_late: forget it then, as the work has ended well.
    """
    before = signal.getsignal(signal.SIGINT)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: pressed.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if pressed and not too_late:
        before(*pressed[0])
