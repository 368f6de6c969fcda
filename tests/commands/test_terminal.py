"""What the bar of a command shows."""

from __future__ import annotations

import io
import resource
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

from trueport.commands.terminal import Teller, write_report
from trueport.errors import TrueportError
from trueport.progress import Counted, Meter


class Clock:
    """Seconds that pass when they are told to."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_phase_that_moves_bytes_shows_how_many_and_how_long_it_will_take() -> None:
    clock = Clock()
    bar = Progress(console=Console(file=io.StringIO(), force_terminal=True), get_time=clock, auto_refresh=False)
    teller = Teller(bar, lambda: None)
    meter = Meter(teller, teller.bytes_done)
    meter.start("weights", 4_000_000)
    assert bar.tasks[0].fields["left"] == "0 B of 4.0 MB"
    seen = []
    for _ in range(4):
        clock.now += 2
        meter.add(1_000_000)
        seen.append(bar.tasks[0].fields["left"])
    assert seen == [
        "1.0 MB of 4.0 MB", "2.0 MB of 4.0 MB, 4 s left", "3.0 MB of 4.0 MB, 2 s left", "4.0 MB of 4.0 MB",
    ]  # fmt: skip
    assert (bar.tasks[0].description, bar.tasks[0].completed, bar.tasks[0].total) == ("weights", 4e6, 4e6)
    teller("prove shapes")
    assert (bar.tasks[0].fields["left"], bar.tasks[0].total) == ("", None)


def test_what_is_written_is_told_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two of them Ctrl-C is heard."""
    monkeypatch.setattr(Counted, "PIECE", 4)
    told: list[int] = []
    stream = io.BytesIO()
    assert Counted(stream, told.append).write(b"0123456789") == 10
    assert (stream.getvalue(), told) == (b"0123456789", [4, 4, 2])


@pytest.mark.parametrize("before", [None, "an earlier report"])
def test_a_report_that_the_disk_has_no_room_for_leaves_what_was_there(before: str | None, tmp_path: Path) -> None:
    place = tmp_path / "report.json"
    if before is not None:
        place.write_text(before)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(TrueportError, match=r"report\.json cannot be written: File too large"):
            write_report(place, {"clauses": ["x" * 200]})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (place.read_text() if place.exists() else None) == before
