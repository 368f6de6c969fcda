"""Ctrl-C that cannot get lost, and SIGTERM, which is heard as Ctrl-C.

Python raises KeyboardInterrupt wherever it is; in a destructor or in a callback of native code it prints the exception and
forgets it, and the work goes on. So an interrupt is remembered, and raised again at the next step that is told.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from trueport.errors import Interruption


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """While inside, SIGINT is remembered; the function given raises KeyboardInterrupt if there was one.

    An error that leaves behind one is what a library made of it, and becomes it again.

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
    except Interruption:  # it is told already
        raise
    except Exception:
        check()
        raise
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


@contextmanager
def terminated() -> Iterator[Callable[[], bool]]:
    """While inside, SIGTERM is as Ctrl-C, so that nothing is left behind; the function given tells whether it came.

    The system would end the process where it stands, and a first process of a container would not even hear it. Nothing
    changes where the signal has a handler, or where Ctrl-C is ignored.
    """
    came = threading.Event()
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    usual = usual and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    if not usual or threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return

    def handle(number: int, frame: Any) -> None:
        came.set()
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, handle)
    try:
        yield came.is_set
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
