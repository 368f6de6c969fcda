"""Ctrl-C in places where Python forgets it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from trueport.errors import Interruption
from trueport.interrupts import remembered, terminated


@pytest.fixture(autouse=True)
def _default_handlers() -> Iterator[None]:
    """As in a process of its own: pytest's worker ignores Ctrl-C, and Ray, once started there, ends it on SIGTERM."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Interrupted:
    """Ctrl-C comes while this is destroyed."""

    def __del__(self) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        for _ in range(1000):  # the handler runs between two instructions
            pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_interrupt_that_a_destructor_loses_is_raised_at_the_next_step() -> None:
    with remembered() as check:
        check()
        Interrupted()
        with pytest.raises(KeyboardInterrupt):
            check()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_raised_at_once() -> None:
    with remembered(), pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_that_an_interrupt_was_made_into_is_none() -> None:
    """transformers' lazy import says of a Ctrl-C that a module's requirements are not met, and to correct the checkpoint."""
    with pytest.raises(KeyboardInterrupt), remembered():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise ModuleNotFoundError("Could not import module 'LlamaConfig'.") from None
    with pytest.raises(ModuleNotFoundError), remembered():
        raise ModuleNotFoundError
    with pytest.raises(Interruption, match="what is kept"), remembered():
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt as interrupt:
            raise Interruption("Interrupted", "what is kept.") from interrupt


def test_a_process_that_ignores_it_goes_on() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with remembered() as check:
        signal.raise_signal(signal.SIGINT)
        check()


def test_the_systems_request_to_end_is_heard_as_ctrl_c() -> None:
    with terminated() as came, remembered():
        assert not came()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        assert came()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_process_that_ignores_ctrl_c_ends_as_ever() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with terminated():
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
