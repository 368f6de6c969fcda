"""Runs a worker on this machine, within its limits: the same for every engine.

The worker is a process group of its own. It reads its job from stdin and tells what it does in JSON lines on stdout; when
stdin ends, whoever started it is gone, and it ends too. What it says otherwise goes to its log.
"""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from trueport.fleet.job import CRASHED, MEMORY, STOPPED, STORAGE, TIME, Job, Outcome
from trueport.fleet.limits import time_words
from trueport.fleet.memory import memory_of
from trueport.words import size_words

WORKER = ("-m", "trueport.fleet.worker")
"""What Python is given to start a worker; which Python, each machine knows for itself."""
INTERVAL = 0.1
"""Seconds between two looks at a worker's memory."""
TAIL = 16384
"""Bytes of a log's end."""

SCRATCH = "trueport-fleet-"
"""How temporary folders of workers begin; the number of the process that made one follows."""

Phase = Callable[[str], None]


def supervise(
    job: Job,
    log: Path,
    *,
    command: Sequence[str] = WORKER,
    stop: threading.Event | None = None,
    phase: Phase = lambda name: None,
    descriptors: Sequence[int] = (),
) -> Outcome:
    """Run one job in a process of its own, to its end or to its limits.

    Args:
        job: what to do.
        log: where what the worker says goes.
        command: what Python is given to start a worker.
        stop: ends the job when it is set.
        phase: told what the worker does.
        descriptors: that the worker inherits.
    """
    started = time.monotonic()
    try:
        with _scratch(job) as ready, log.open("wb") as errors:
            process = subprocess.Popen(
                [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                start_new_session=True, pass_fds=tuple(descriptors), env=_environment(ready),
            )  # fmt: skip
            watch = _Watch(ready, process, stop or threading.Event(), phase)
            try:
                outcome = watch.until_its_end()
            finally:
                watch.kill()
    except OSError as error:
        outcome, peak = {"status": STORAGE, "reason": f"its worker could not be started: {error}"}, None
    else:
        peak = watch.peak
        if outcome["status"] == CRASHED:
            outcome["reason"] += _last_words(log)
    return {"seconds": round(time.monotonic() - started, 3), "peak": peak} | outcome


class _Watch:
    """Looks at one worker until it ends, or has to."""

    def __init__(self, job: Job, process: subprocess.Popen[bytes], stop: threading.Event, phase: Phase) -> None:
        self.job, self.process, self.stop, self.tell = job, process, stop, phase
        self.started = time.monotonic()
        self.peak: int | None = None
        self.phase = "start"
        self.result: Outcome | None = None
        self.messages: queue.Queue[bytes] = queue.Queue()
        assert process.stdin is not None and process.stdout is not None
        self.stdin = process.stdin
        self.reader = threading.Thread(target=self._read, args=(process.stdout,), daemon=True)

    def until_its_end(self) -> Outcome:
        self.reader.start()
        with suppress(BrokenPipeError):  # it is dead already, which is seen below
            self.stdin.write(json.dumps(self.job.to_json()).encode() + b"\n")
            self.stdin.flush()
        while self.process.poll() is None and self.result is None:
            self._listen(INTERVAL)
            if (passed := self._passed()) is not None:
                return passed
        if self.result is None:
            self.reader.join(5)
            self._listen(0)
        return self.result or self._death()

    def kill(self) -> None:
        """End the worker's whole group, and wait for it."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        with suppress(OSError):
            self.stdin.close()
        self.reader.join(5)

    def _read(self, stdout: IO[bytes]) -> None:
        with stdout:
            for line in stdout:
                self.messages.put(line)

    def _listen(self, seconds: float) -> None:
        """Take what the worker told; wait so long for the first of it."""
        with suppress(queue.Empty):
            while True:
                line = self.messages.get(timeout=seconds) if seconds else self.messages.get_nowait()
                seconds = 0
                try:
                    message = json.loads(line)
                except ValueError:  # half a line of a worker that was killed
                    continue
                if "phase" in message:
                    self.phase = str(message["phase"])
                    self.tell(self.phase)
                else:
                    self.result = message

    def _passed(self) -> Outcome | None:
        """The limit that is passed, if any."""
        held = memory_of(self.process.pid)
        if held is not None:
            self.peak = max(self.peak or 0, held)
        job, now = self.job, time.monotonic() - self.started
        if self.result is not None:
            return None
        if self.stop.is_set():
            return {"status": STOPPED, "reason": "the run was stopped"}
        if job.memory is not None and held is not None and held > job.memory:
            words = f"out of memory in {self.phase!r}: peak {size_words(held)} of {size_words(job.memory)}"
            remedy = "Raise memory =" + ("." if job.options.get("weights") == "link" else ', or use weights = "link".')
            return {"status": MEMORY, "reason": f"{words}. {remedy}"}
        if job.seconds is not None and now > job.seconds:
            words = f"out of time in {self.phase!r} after {time_words(job.seconds)}"
            return {"status": TIME, "reason": f"{words}. Raise time =."}
        return None

    def _death(self) -> Outcome:
        code = self.process.returncode
        if code is not None and code < 0:
            words = f"its process was killed in {self.phase!r} by {signal.Signals(-code).name}"
            if -code == signal.SIGKILL:
                words += ", perhaps by the system for want of memory"
        else:
            words = f"its process ended in {self.phase!r} with exit code {code} and no result"
        return {"status": CRASHED, "reason": words}


@contextmanager
def _scratch(job: Job) -> Iterator[Job]:
    """A folder to export in, which is gone afterwards."""
    if job.scratch is not None:
        place = Path(job.scratch)
        place.mkdir(parents=True, exist_ok=True)
    else:
        sweep()
        place = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{os.getpid()}-"))
    try:
        yield Job.from_json(job.to_json() | {"scratch": str(place)})
    finally:
        shutil.rmtree(place, ignore_errors=True)


def sweep() -> None:
    """Remove the temporary folders of those that were killed here."""
    for path in Path(tempfile.gettempdir()).glob(f"{SCRATCH}*-*"):
        pid = path.name.split("-")[2]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc/self").exists():
            shutil.rmtree(path, ignore_errors=True)


def _environment(job: Job) -> dict[str, str]:
    given = {} if job.cpus is None else {"OMP_NUM_THREADS": str(job.cpus)}
    # Temporary files of a worker that is killed go the way of its scratch folder.
    return {"PYTHONHASHSEED": "0", **os.environ, "TOKENIZERS_PARALLELISM": "false", "TMPDIR": str(job.scratch), **given}


def _last_words(log: Path) -> str:
    lines = [line.strip() for line in tail(log).splitlines() if line.strip()]
    return f"; its last words: {lines[-1][:300]}" if lines else ""


def tail(log: Path) -> str:
    """The end of a log."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            return file.read().decode(errors="replace")
    except OSError:
        return ""


def message(content: dict[str, Any]) -> bytes:
    """A line of a worker's stdout."""
    return json.dumps(content, ensure_ascii=False).encode() + b"\n"
