"""Native code is muted for a while, and heard again."""

from __future__ import annotations

import logging
import os
import sys
import threading
import warnings

import pytest

from trueport.quiet import mute_native, quiet, silent


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


def test_work_that_overlaps_leaves_the_process_as_it_was() -> None:
    """Two exports in two threads: what the second one found was the first one's silence, and it put that back."""
    loud = sys.stdout, sys.stderr, logging.getLogger("torch").level, list(warnings.filters)
    first, second = [[silent("stdout"), silent("stderr"), quiet()] for _ in range(2)]
    for work in (*first, *second):
        work.__enter__()
    assert sys.stdout is not loud[0] and sys.stderr is not loud[1]
    for work in (*first, *second):
        work.__exit__(None, None, None)
    assert (sys.stdout, sys.stderr, logging.getLogger("torch").level, list(warnings.filters)) == loud
