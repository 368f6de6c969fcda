"""Functions that run a code are found among all objects of the process, whatever else is there."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from trueport.rewrite.source import functions_of, makers_of


def maker() -> Callable[[], int]:
    def made() -> int:
        return 1

    return made


class Lies:
    """Whose class is told by code of its own, as that of modules which are imported late."""

    @property
    def __class__(self) -> Any:
        raise RuntimeError("asked")


def test_objects_that_answer_for_themselves_are_not_asked() -> None:
    """A weak proxy whose object is gone raises as soon as it is asked for its class."""
    lies, gone, one, other = Lies(), Lies.__new__(Lies), maker(), maker()
    proxy = weakref.proxy(gone)
    del gone
    assert makers_of(one.__code__) == [maker]
    assert {id(found) for found in functions_of(one.__code__)} == {id(one), id(other)}
    assert type(proxy) is weakref.ProxyType and type(lies) is Lies
