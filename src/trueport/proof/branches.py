"""Branches that no input of a proof takes: what they compute is not proven, and the proof says so."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.proof.reference import OriginalError
from trueport.proof.result import Case

if TYPE_CHECKING:
    from trueport.rewrite.watch import Read


def one_way(run: Callable[[Any], Any], asked: Iterable[Any]) -> list[Case]:
    """A case left out for each test on a tensor's value that is answered one way only.

    Args:
        run: the original, unpatched.
        asked: the inputs of the proof.
    """
    from trueport.rewrite.watch import Watch, run_once

    reads, answers = dict["Read", None](), dict["Read", set[bool]]()
    for feeds in asked:
        with Watch(reads) as watch, suppress(OriginalError):
            run_once(partial(run, feeds))
        for read, answer in watch.answers:
            answers.setdefault(read, set()).add(answer)
        if not reads:  # it has no such test
            return []
    return [
        Case(
            f"{Path(read.file).name}:{read.start[0]}",
            0.0,
            0.0,
            None,
            f"`{read.line}` is {next(iter(given))} for every input that was asked: the other way was not compared. Give a "
            "sample that takes it",
            left_out=True,
        )
        for read, given in answers.items()
        if len(given) == 1
    ]
