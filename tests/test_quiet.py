"""Native code is muted for a while, and heard again."""

from __future__ import annotations

import os
import threading

import pytest

from trueport.quiet import mute_native


def test_two_threads_that_mute_by_turns_leave_errors_heard() -> None:
    before, first, second, last = os.fstat(2), threading.Event(), threading.Event(), threading.Event()

    def one() -> None:
        with mute_native():
            first.set()
            second.wait(0.2)
        last.set()

    def other() -> None:
        first.wait(5)
        with mute_native():
            second.set()
            last.wait(5)

    threads = [threading.Thread(target=run) for run in (one, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert os.path.samestat(os.fstat(2), before)


def test_an_error_within_goes_on_and_is_heard() -> None:
    before = os.fstat(2)
    with pytest.raises(ValueError, match="within"), mute_native():
        raise ValueError("within")
    assert os.path.samestat(os.fstat(2), before)
