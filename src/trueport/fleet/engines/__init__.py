"""Where a fleet's workers run: in processes here, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from trueport.errors import TrueportError
from trueport.fleet.job import Job, Outcome
from trueport.fleet.watch import Phase

ENGINES = ("local", "ray")


class Engine(Protocol):
    """Runs jobs, each in a process of its own.

    Attributes:
        slots: how many jobs to start before one has ended.
    """

    slots: int

    def start(self, job: Job, log: Path) -> None:
        """Begin a job; what its worker says goes to ``log``, at the latest when it has ended."""
        ...

    def ended(self, seconds: float) -> list[tuple[Job, Outcome]]:
        """The jobs that ended since the last call; waits so long for the first."""
        ...

    def impossible(self, job: Job) -> str:
        """Why this job would never start here, in a sentence; empty where it would."""
        ...

    def stop(self) -> None:
        """End every job at once, and wait until their processes are gone."""
        ...


def open_engine(
    name: str,
    *,
    address: str | None,
    jobs: int | None,
    command: Sequence[str],
    phase: Phase,
    descriptors: Sequence[int] = (),
) -> Engine:
    """The engine of a name.

    Raises:
        TrueportError: there is none, or it cannot be reached.
    """
    if name == "local":
        from trueport.fleet.engines.local import LocalEngine

        if address is not None:
            raise TrueportError(f"The local engine has no address ({address})", "Give --engine ray, or leave it out.")
        return LocalEngine(jobs, command, phase, descriptors)
    if name == "ray":
        from trueport.fleet.engines.ray import RayEngine

        return RayEngine(address, jobs, command)
    raise TrueportError(f"There is no engine {name!r}", f"Give one of {', '.join(ENGINES)}.")
