"""What commands show on a terminal: a bar while they work, and the proof's table."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trueport.artifact import write_json
from trueport.errors import TrueportError
from trueport.interrupts import remembered

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


@contextmanager
def progress() -> Iterator[Teller]:
    """A bar on a terminal's stderr, silent elsewhere."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(file=sys.stderr)  # bound now: capture silences stderr while torch works
    columns = (
        SpinnerColumn(), BarColumn(bar_width=24), TextColumn("{task.description}"), TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )  # fmt: skip
    with (
        remembered() as check,
        Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar,
    ):
        yield Teller(bar, check)


class Teller:
    """Shows an export's phase, and of a phase that moves bytes how many, and how long it will take.

    Args:
        bar: to show it on.
        check: asked at every step; it raises what ends the work.
    """

    def __init__(self, bar: RichProgress, check: Callable[[], None]) -> None:
        self.bar = bar
        self.check = check
        self.task = bar.add_task("start", total=None, left="")

    def __call__(self, phase: str) -> None:
        self.check()
        # Not reset(), which leaves the total of a phase that moved bytes to the next one.
        self.bar.remove_task(self.task)
        self.task = self.bar.add_task(phase, total=None, left="")

    def bytes_done(self, done: int, total: int) -> None:
        """So many bytes of so many."""
        from trueport.words import size_words

        self.check()
        self.bar.update(self.task, completed=done, total=total or None)
        seconds = self.bar.tasks[0].time_remaining
        left = "" if seconds is None or done >= total else f", {seconds:.0f} s left"
        self.bar.update(self.task, left=f"{size_words(done)} of {size_words(total)}{left}")


def show(content: dict[str, Any] | None) -> None:
    """The table of a proof, and its headline; nothing without one."""
    if content is None:
        return
    from rich.console import Console

    from trueport.proof.report import headline, table
    from trueport.words import clean

    class _Pipe(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    console = _Pipe()
    console.print(table(content))
    console.print(headline(content), soft_wrap=True, markup=False)
    for note in clean(content.get("notes") or []):
        console.print(f"{note}.", soft_wrap=True, markup=False)


def write_report(place: Path, content: dict[str, Any]) -> None:
    """Write what was found to a file as JSON.

    Raises:
        TrueportError: the file cannot be written; it is as it was.
    """
    try:
        before = place.read_bytes() if place.is_file() else None
        try:
            write_json(place, content)
        except OSError:
            if before is not None:
                place.write_bytes(before)  # there was room for it
            elif place.is_file():
                place.unlink()
            raise
    except OSError as error:
        raise TrueportError(f"{place} cannot be written: {error.strerror}", "Give another place.") from error


def moved_words() -> str:
    """What a shell has to know that stands in a folder that was replaced; empty where it does not."""
    try:
        os.getcwd()
    except FileNotFoundError:
        return "The folder that this shell stands in was replaced: `cd .` enters the new one."
    return ""


def kept_words(error: BaseException) -> str:
    """What an export that ended so has kept for another time (resume/shelf.py); empty where that is nothing."""
    return str(getattr(error, "kept", ""))
