"""The runtimes that Trueport exports to, found through entry points."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trueport.errors import TrueportError

if TYPE_CHECKING:
    from trueport.capture import Captured
    from trueport.interface import Interface
    from trueport.runtime.protocol import Session

GROUP = "trueport.targets"
"""Entry point group: a package of its own adds a target by naming a class there."""


@dataclass(frozen=True)
class Lowered:
    """One component as it lies on disk.

    Attributes:
        file: relative to the artefact's root.
        interface: what the file takes and gives.
        guards: sizes past which torch made no promise.
        depth: operators in the graph; the proof's tolerance without an original grows with its square root.
    """

    file: str
    interface: Interface
    depth: int
    guards: tuple[int, ...] = ()


class Target(Protocol):
    """A runtime to export to."""

    name: str

    def lower(self, captured: Iterable[Captured], folder: Path, options: Mapping[str, Any]) -> dict[str, Lowered]:
        """Write every captured program below ``folder``, the artefact's root; by component name.

        Raises:
            LoweringError: a program has no form in this target.
        """
        ...

    def open(
        self, path: Path, interface: Interface | None, *, memory: str = "fast", threads: int | None = None
    ) -> Session:
        """A file that ``lower`` wrote, ready to run.

        Raises:
            ArtifactError: the runtime cannot open it.
        """
        ...


def target_names() -> list[str]:
    """Every installed target."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        TrueportError: none is installed under this name.
    """
    for point in entry_points(group=GROUP, name=name):
        target: Target = point.load()()
        return target
    raise TrueportError(f"There is no target {name}", f"The installed targets are: {', '.join(target_names())}.")
