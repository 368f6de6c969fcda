"""The command itself, killed, interrupted, started twice."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from functools import partial

import pytest

from tests.fleet.conftest import HERE, ROOT, Fleet, gone, until
from trueport.commands.fleet import report
from trueport.errors import TrueportError

pytestmark = pytest.mark.slow


def _three(fleet: Fleet) -> None:
    fleet.add("done")
    fleet.add("first", "wait")
    fleet.add("second", "wait")


def _go(fleet: Fleet) -> None:
    (fleet.folder / "go").touch()


def test_a_driver_that_is_killed_loses_nothing_and_repeats_nothing(fleet: Fleet) -> None:
    _three(fleet)
    with fleet.start("--jobs", "2") as driver:
        fleet.until_called("first", "second")
        workers = fleet.calls("first") + fleet.calls("second")
        driver.kill()
        driver.wait()
        # At once: the workers of the killed one still hold its lock, and the next waits until they are gone.
        with fleet.start("--jobs", "2") as after:
            fleet.until_called("first", "second")
            until(lambda: all(map(gone, workers)))
            _go(fleet)
            output, errors = after.communicate(timeout=60)
    assert after.returncode == 0, errors
    assert "done: proven" in output and "(done before)" in output and "3 models: 3 proven." in output
    assert [len(fleet.calls(name)) for name in ("done", "first", "second")] == [1, 2, 2]
    assert fleet.artefacts() == ["done", "first", "second"]
    assert list(fleet.out.glob(".*")) == []


def test_a_second_driver_is_refused(fleet: Fleet) -> None:
    _three(fleet)
    with fleet.start("--jobs", "1") as driver:
        fleet.until_called("first")
        with fleet.start() as second:
            _, errors = second.communicate(timeout=60)
        assert second.returncode == 2
        assert len(errors.splitlines()) == 1 and f"is being run by process {driver.pid}" in errors
        status = subprocess.run(
            [sys.executable, HERE / "driver.py", "fleet", "status", fleet.plan],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        assert status.returncode == 1
        assert "done: proven" in status.stdout and "first: running" in status.stdout and "1 waiting" in status.stdout
        _go(fleet)
        driver.communicate(timeout=60)
    assert driver.returncode == 0
    assert [len(fleet.calls(name)) for name in ("done", "first", "second")] == [1, 1, 1]


def test_two_plans_with_one_model_both_find_it_exported(fleet: Fleet) -> None:
    """They share OUT: whoever comes second is not told that another export is in the way, as it is the same one."""
    fleet.add("one", "wait")
    with fleet.start() as first:
        until(lambda: len(fleet.calls("one")) == 1)
        fleet.plan = fleet.plan.rename(fleet.folder / "other.toml")
        with fleet.start() as second:
            until(lambda: len(fleet.calls("one")) == 2)
            _go(fleet)
            outputs = [driver.communicate(timeout=60)[0] for driver in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0), outputs
    assert fleet.artefacts() == ["one"] and list(fleet.out.glob(".*")) == []


def test_ctrl_c_stops_the_workers_and_the_next_run_goes_on(fleet: Fleet) -> None:
    _three(fleet)
    with fleet.start("--jobs", "2") as driver:
        fleet.until_called("first", "second")
        workers = fleet.calls("first") + fleet.calls("second")
        driver.send_signal(signal.SIGINT)
        _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 130
    assert "Interrupted: 1 of 3 models done" in errors and "Traceback" not in errors and len(errors.splitlines()) == 1
    assert all(map(gone, workers))
    assert fleet.artefacts() == ["done"] and list(fleet.out.glob(".*")) == []
    assert fleet.statuses() == {"done": "proven", "first": "waiting", "second": "waiting"}
    _go(fleet)
    assert fleet.run(jobs=2).exit_code == 0
    assert [len(fleet.calls(name)) for name in ("done", "first", "second")] == [1, 2, 2]


@pytest.mark.parametrize("earlier", [False, True])
@pytest.mark.parametrize("how", ["Ctrl-C", "time"])
def test_an_upload_that_is_stopped_leaves_nothing(fleet: Fleet, how: str, earlier: bool) -> None:
    """Neither in a place of its own nor beside the old artefact, which stays."""
    fleet.quota(10**6)
    fleet.add("one", "dawdle", times=2, retries=0, time="2s" if how == "time" else "60s")
    behave = fleet.folder / "models" / "one" / "behave.json"
    if earlier:
        wanted = behave.read_text()
        behave.write_text('{"do": "fine"}')
        assert fleet.run().exit_code == 0
        behave.write_text(wanted)
    before = {path: path.read_bytes() for path in (fleet.out / "one").rglob("*") if path.is_file()}
    with fleet.start("--force") as driver:
        until((fleet.folder / "uploading").exists)
        if how == "Ctrl-C":
            driver.send_signal(signal.SIGINT)
        driver.communicate(timeout=60)
    assert driver.returncode == (130 if how == "Ctrl-C" else 1)
    assert {path: path.read_bytes() for path in (fleet.out / "one").rglob("*") if path.is_file()} == before
    assert not (fleet.out / ".trueport-fleet").exists()
    behave.write_text('{"do": "fine"}')
    assert fleet.run(force=True).exit_code == 0


def test_ctrl_c_pressed_twice_leaves_no_workshop(fleet: Fleet) -> None:
    """The second one comes while the first one's workers are stopped."""
    _three(fleet)
    with fleet.start("--jobs", "2") as driver:
        fleet.until_called("first", "second")
        for _ in range(4):
            driver.send_signal(signal.SIGINT)
            time.sleep(0.01)
        _, errors = driver.communicate(timeout=60)
    assert "Interrupted: 1 of 3 models done" in errors and "Traceback" not in errors
    assert fleet.artefacts() == ["done"] and list(fleet.out.glob(".*")) == []


def test_exit_codes_and_the_report(fleet: Fleet) -> None:
    fleet.add("wrong", "fail")
    with fleet.start() as driver:
        output, errors = driver.communicate(timeout=60)
    assert (driver.returncode, errors) == (1, "")
    assert "wrong: failed" in output and "1 model: 1 failed." in output
    page = fleet.folder / "page.html"
    words = [sys.executable, HERE / "driver.py", "fleet", "report", fleet.plan, "-o", page]
    assert subprocess.run(words, cwd=ROOT, capture_output=True).returncode == 0
    assert page.read_text() == (fleet.state / "report.html").read_text()
    for place, says in ((fleet.folder, "is a folder"), (fleet.plan, "is the plan itself")):
        with pytest.raises(TrueportError, match=says):
            report(fleet.plan, place)
    fleet.plan.write_text(fleet.plan.read_text() + "quantise = 'int8'\n")
    with fleet.start() as driver:
        _, errors = driver.communicate(timeout=60)
    assert driver.returncode == 2 and len(errors.splitlines()) == 1
    assert f"{fleet.plan}:4: [[model]] 1" in errors and "Did you mean quantize?" in errors


@pytest.mark.parametrize("bytes_left", [10, 600])
def test_a_disk_that_fills_under_the_journal(fleet: Fleet, bytes_left: int) -> None:
    """The driver's files may not grow past a size; what it cannot write down it does not go on with."""
    fleet.add("one")
    fleet.add("two")
    fleet.run(jobs=1)
    fleet.add("three")
    fleet.add("four")
    journal = fleet.state / "journal.jsonl"
    before = journal.read_bytes()
    filler = b'{"event": "note", "words": "%s"}\n' % (b"x" * 60_000)
    journal.write_bytes(before + filler)
    limit = len(before + filler) + bytes_left
    words = [sys.executable, HERE / "driver.py", "fleet", "run", fleet.plan, "--out", fleet.url]
    full = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (limit, limit))
    done = subprocess.run(words, capture_output=True, text=True, cwd=ROOT, preexec_fn=full)
    assert done.returncode == 2 and "journal.jsonl cannot be written" in done.stderr, done
    assert len(done.stderr.splitlines()) == 1
    assert list(fleet.out.glob(".*")) == []
    assert fleet.run().exit_code == 0  # there is space again
    assert [len(fleet.calls(name)) for name in ("one", "two")] == [1, 1]
    assert fleet.artefacts() == ["four", "one", "three", "two"]
