"""The collector's setting: rarer within, as before afterwards, whoever leaves first."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

from trueport.collector import FACTOR, rare_collections


@pytest.fixture(autouse=True)
def before() -> Iterator[tuple[int, int, int]]:
    found = gc.get_threshold()
    yield found
    gc.set_threshold(*found)


def test_full_collections_are_rarer_within_and_as_before_after_an_error(before: tuple[int, int, int]) -> None:
    with pytest.raises(KeyError), rare_collections():
        assert gc.get_threshold() == (*before[:2], before[2] * FACTOR)
        raise KeyError
    assert gc.get_threshold() == before


def test_no_full_collection_follows_at_once(before: tuple[int, int, int]) -> None:
    """By its count one would be due: as many came within as come between two, ten times over."""
    gc.set_threshold(700, 10, 10)
    with rare_collections():
        for _ in range(10 * 11):
            gc.collect(1)
        assert gc.get_count()[2] > 10
    assert gc.get_count()[2] == 0 and not gc.get_freeze_count()


def test_what_the_process_froze_itself_stays_so(before: tuple[int, int, int]) -> None:
    gc.freeze()
    try:
        with rare_collections():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()


def test_two_at_once_set_it_back_once(before: tuple[int, int, int]) -> None:
    inside, leave = threading.Event(), threading.Event()

    def other() -> None:
        with rare_collections():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with rare_collections():
        thread.start()
        assert inside.wait(10)
    assert gc.get_threshold() == (*before[:2], before[2] * FACTOR)  # the other one is still within
    leave.set()
    thread.join()
    assert gc.get_threshold() == before
