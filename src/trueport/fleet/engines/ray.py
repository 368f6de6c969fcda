"""Workers on a Ray cluster: a task starts the same process on its node that the local engine starts here, and watches it.

Ray decides where; Trueport decides whether to try again, and what counts as done. The nodes need Trueport, in the versions
of the machine that runs the fleet, and have to see the models and the store.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from trueport.errors import TrueportError
from trueport.fleet.job import CRASHED, ERROR, Job, Outcome
from trueport.fleet.watch import SCRATCH, supervise, sweep, tail
from trueport.words import size_words

SLOTS = 1000
"""Tasks that wait within Ray at most."""


LOOK = 3.0
"""Seconds between two looks at the cluster's head."""
LOST = 30.0
"""Seconds without it after which it is gone."""


def _answers(address: str) -> bool:
    """Whether something listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LOOK).close()
    except (OSError, ValueError):
        return False
    return True


@contextmanager
def _signals_kept() -> Iterator[None]:
    """Ray puts handlers of its own in the place of those that clean up."""
    main = threading.current_thread() is threading.main_thread()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)} if main else {}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def on_node(content: dict[str, Any], command: Sequence[str]) -> Outcome:
    """The task: one job on whatever node Ray chose."""
    import ray

    sweep()
    with tempfile.TemporaryDirectory(prefix=f"{SCRATCH}{os.getpid()}-") as folder:
        log = Path(folder, "log")
        outcome = supervise(Job.from_json(content), log, command=command)
        return outcome | {"log": tail(log), "node": ray.get_runtime_context().get_node_id()}


class RayEngine:
    """See ``Engine``.

    Args:
        address: of the cluster, as ``ray.init`` takes it; None finds the one that runs here.
        jobs: at once at most; as many as the cluster holds when None.
        command: what Python is given to start a worker.

    Raises:
        TrueportError: Ray is not installed, or there is no cluster.
    """

    def __init__(self, address: str | None, jobs: int | None, command: Sequence[str]) -> None:
        try:
            import ray
        except ImportError as error:
            raise TrueportError("The engine ray needs Ray", 'Run: pip install "trueport[ray]".') from error
        try:
            with _signals_kept():
                ray.init(address=address or "auto", log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            remedy = "Start one (ray start --head), or give its --address."
            raise TrueportError(f"There is no Ray cluster at {address or 'this machine'}: {reason}", remedy) from error
        self.ray, self.command = ray, list(command)
        self.slots = jobs or SLOTS
        # Ray's own retries know nothing of what is done already.
        self.task = ray.remote(max_retries=0)(on_node)
        self.running: dict[Any, tuple[Job, Path, float]] = {}
        self.told = address or "this machine"
        self.head = ray.get_runtime_context().gcs_address
        self.looked = time.monotonic()
        # Of a cluster that is spoken to through a proxy nothing can be said.
        self.seen = self.looked if _answers(self.head) else float("inf")

    def start(self, job: Job, log: Path) -> None:
        options: dict[str, Any] = {"num_cpus": job.cpus or 1, "name": job.name, "scheduling_strategy": "SPREAD"}
        if job.memory is not None:
            options["memory"] = job.memory
        reference = self.task.options(**options).remote(job.to_json(), self.command)
        self.running[reference] = (job, log, time.monotonic())

    def ended(self, seconds: float) -> list[tuple[Job, Outcome]]:
        if not self.running:
            time.sleep(seconds)
            return []
        self._check_head()
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        return [self._outcome(reference) for reference in ready]

    def impossible(self, job: Job) -> str:
        """A task that no node has room for would wait for ever, without a word from Ray."""
        needs = {"CPU": float(job.cpus or 1), "memory": float(job.memory or 0)}
        alive = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        if any(all(node.get(kind, 0) >= count for kind, count in needs.items()) for node in alive):
            return ""
        words = f"{needs['CPU']:g} processors and {size_words(int(needs['memory']))} of memory"
        return f"none of the cluster's {len(alive)} nodes has {words}. Lower cpus = or memory =, or add a node."

    def _check_head(self) -> None:
        """Raise where the cluster's head is gone: after a minute without it, Ray ends the process on the spot."""
        now = time.monotonic()
        if now - self.looked < LOOK:
            return
        self.looked = now
        if self.seen != float("inf") and _answers(self.head):
            self.seen = now
        if now - self.seen > LOST:
            self.running.clear()  # nobody is left to be told that these are cancelled
            raise TrueportError(f"The Ray cluster at {self.told} is gone", "Start it again: the same command goes on.")

    def stop(self) -> None:
        for reference in self.running:
            with suppress(Exception):  # it may have ended meanwhile
                # The task's process is killed, the worker's stdin ends, and the worker ends itself.
                self.ray.cancel(reference, force=True)
        with suppress(Exception):
            self.ray.wait(list(self.running), num_returns=len(self.running), timeout=10)
        self.running.clear()
        with _signals_kept():
            self.ray.shutdown()

    def _outcome(self, reference: Any) -> tuple[Job, Outcome]:
        job, log, started = self.running.pop(reference)
        try:
            outcome: Outcome = self.ray.get(reference)
        except self.ray.exceptions.RayTaskError as error:
            reason = " ".join(str(error.cause or error).split())[-300:]
            outcome = {"status": ERROR, "reason": f"its node could not run the task: {reason}"}
        except self.ray.exceptions.RayError as error:
            reason = " ".join(str(error).split())[:300]
            outcome = {"status": CRASHED, "reason": f"Ray lost it ({type(error).__name__}): {reason}"}
        with suppress(OSError):
            log.write_text(outcome.pop("log", ""), encoding="utf-8")
        return job, {"seconds": round(time.monotonic() - started, 3), "peak": None} | outcome
