"""One attempt at one entry: what a worker is given, and what becomes of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

PROVEN, UNPROVEN, FAILED = "proven", "unproven", "failed"
"""Verdicts; ``unproven`` is only what was not to be proven."""
REFUSED, ERROR = "refused", "error"
"""It cannot be exported: for a reason that the user can mend; for a fault of Trueport's or of a library's."""
CRASHED, MEMORY, TIME, STORAGE = "crashed", "out of memory", "out of time", "storage"
"""Its process died; it passed a limit; what it wrote found no place."""
STOPPED = "stopped"
"""The whole run was."""

RIGHT = (PROVEN, UNPROVEN)
"""With these alone the fleet's exit code is 0."""
LASTING = (PROVEN, UNPROVEN, FAILED)
"""The same entry would end so again: a later run does not ask."""
TRANSIENT = (CRASHED, STORAGE)
"""May end otherwise when tried again."""


@dataclass(frozen=True)
class Job:
    """What a worker needs to know, as JSON.

    Attributes:
        name: the entry's.
        key: of all that decides what is written (identity.py).
        attempt: from 1.
        run: of the fleet, whose mark the worker has to see in the store.
        model: as ``trueport.export`` takes it.
        options: keywords of ``trueport.export``.
        source: what the model was known by when the key was made.
        versions: of the packages, then.
        out: the store's URL.
        storage: what it is opened with.
        force: replace another export.
        seconds: limit; None for none.
        memory: limit in bytes; None for none.
        cpus: threads; None leaves it to the engine.
        scratch: the folder to export in; None for a temporary one where the worker runs.
    """

    name: str
    key: str
    attempt: int
    run: str
    model: str
    options: Mapping[str, Any]
    source: Any
    versions: Mapping[str, str]
    out: str
    storage: Mapping[str, Any] = field(default_factory=dict)
    force: bool = False
    seconds: float | None = None
    memory: int | None = None
    cpus: int | None = None
    scratch: str | None = None

    def to_json(self) -> dict[str, Any]:
        """For ``from_json``, in another process."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Job:
        """What ``to_json`` gave."""
        return cls(**content)


Outcome = dict[str, Any]
"""What became of a job, as JSON: ``status`` and ``reason``; ``seconds``, ``peak`` in bytes (None where it cannot be
measured); of an artefact ``size``; of a proof ``proof``, its whole content; ``log``, the end of what the worker said, where
it lies on another machine."""
