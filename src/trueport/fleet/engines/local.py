"""Workers on this machine, a thread watching each."""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from trueport.fleet.job import ERROR, Job, Outcome
from trueport.fleet.watch import Phase, supervise


class LocalEngine:
    """See ``Engine``.

    Args:
        jobs: at once; half the processors when None. The processors are shared out among them.
        command: what Python is given to start a worker.
        phase: told ``name: phase`` of the workers.
        descriptors: that every worker inherits.
    """

    def __init__(self, jobs: int | None, command: Sequence[str], phase: Phase, descriptors: Sequence[int]) -> None:
        processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        self.slots = jobs or max(1, processors // 2)
        self.threads = max(1, processors // self.slots)
        self.command, self.phase, self.descriptors = command, phase, descriptors
        self.outcomes: queue.Queue[tuple[Job, Outcome]] = queue.Queue()
        self.stopping = threading.Event()
        self.watchers: list[threading.Thread] = []

    def start(self, job: Job, log: Path) -> None:
        self.watchers = [watcher for watcher in self.watchers if watcher.is_alive()]
        watcher = threading.Thread(target=self._watch, args=(job, log), daemon=True)
        self.watchers.append(watcher)
        watcher.start()

    def ended(self, seconds: float) -> list[tuple[Job, Outcome]]:
        found = []
        with suppress(queue.Empty):
            found.append(self.outcomes.get(timeout=seconds))
            while True:
                found.append(self.outcomes.get_nowait())
        return found

    def impossible(self, job: Job) -> str:
        return ""

    def stop(self) -> None:
        self.stopping.set()
        for watcher in self.watchers:
            watcher.join()

    def _watch(self, job: Job, log: Path) -> None:
        told = replace(job, cpus=job.cpus or self.threads)
        try:
            outcome = supervise(
                told, log, command=self.command, stop=self.stopping, descriptors=self.descriptors,
                phase=lambda name: self.phase(f"{job.name}: {name}"),
            )  # fmt: skip
        except Exception as error:  # a thread that ends without a word would leave the run waiting
            outcome = {"status": ERROR, "reason": f"the watch over its worker ended: {error!r}"}
        self.outcomes.put((job, outcome))
