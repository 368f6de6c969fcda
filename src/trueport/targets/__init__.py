"""The runtimes that Trueport exports to, found through entry points."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trueport.errors import TrueportError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from trueport.capture import Captured
    from trueport.interface import Interface
    from trueport.roles import Component
    from trueport.roles.bounded import Bounds
    from trueport.runtime.protocol import Session
    from trueport.targets.quantized import Gate

Arrays = Mapping[str, "np.ndarray"]
"""Tensors by name."""
Again = Callable[[Mapping[str, Any]], set[str]]
"""Changed options to the names of the clauses that fail with them."""
GROUP = "trueport.targets"
"""Entry point group: a package of its own adds a target by naming a class there."""


@dataclass(frozen=True)
class Lowered:
    """One component as it lies on disk.

    Attributes:
        file: relative to the artefact's root.
        interface: what the file takes and gives.
        guards: sizes from which on torch made no promise.
        depth: operators in the graph; the proof's tolerance without an original grows with its square root.
        extra: what else the target's ``open`` needs, and what the report tells; JSON.
    """

    file: str
    interface: Interface
    depth: int
    guards: tuple[int, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


class Target(Protocol):
    """A runtime to export to.

    What it quantised it names under ``quantize`` in the ``extra`` of what it lowered.

    Attributes:
        packages: the distributions whose versions the manifest names.
        stamps: whether it can put layers into what it wrote that the captured program lacks.
        links: whether it can point at a checkpoint's own bytes, and so export a model whose weights were never loaded.
        gates: by the name of each kind of quantisation, what it has to keep; none for a target that quantises nothing.
    """

    name: str
    packages: tuple[str, ...]
    links: bool
    stamps: bool

    @property
    def gates(self) -> Mapping[str, Gate]:
        """See above."""
        ...

    def components(
        self, model: PreTrainedModel, *, untrained: tuple[str, ...], options: Mapping[str, Any]
    ) -> list[Component]:
        """What to capture, in the form that the runtime takes."""
        ...

    def quantised_layers(self, path: Path) -> Counter[str]:
        """Layers of a file that it itself shows to multiply by weights in few bits, by kind; of a mix, by what it mixes.

        Raises:
            ArtifactError: the file is broken.
        """
        ...

    def bounds(self, options: Mapping[str, Any]) -> Bounds | None:
        """The largest sizes to plan memory for; None where the runtime plans none."""
        ...

    def check(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the target does not know, before the model is loaded.

        Raises:
            TrueportError: it says which, and what to give.
        """
        ...

    def restored(self, content: bytes, component: Component) -> Any:
        """What ``lower`` takes in the place of a component's captured program, from what it gave to ``Captured.keep``.

        None where the content does not fit the component; a target that keeps nothing is never asked.
        """
        ...

    def lower(self, captured: Iterable[Captured], folder: Path, options: Mapping[str, Any]) -> dict[str, Lowered]:
        """Write every captured program below ``folder``, the artefact's root; by component name.

        Args:
            captured: captures a component when it is asked for the next program.
            folder: the artefact's root.
            options: of the export; ``components``, by name, are what is captured, and from a target that links nothing
                ``maps`` are the files that the weights are pages of.

        Raises:
            LoweringError: a program has no form in this target.
        """
        ...

    def explain(self, failed: Sequence[str], again: Again, options: Mapping[str, Any]) -> dict[str, str]:
        """Why clauses failed, as far as exporting again in other ways can tell; words by clause.

        Args:
            failed: names of the clauses.
            again: exports with these options changed and gives the names of those clauses that fail then.
            options: of the export that failed.
        """
        ...

    def run_apart(self, path: Path, runs: Sequence[Arrays]) -> Sequence[Arrays | None]:
        """Inputs by name to outputs by name, for each run, in a process of its own that may crash.

        None where the runtime refuses a run or does not survive it, and from a target whose dimensions begin at 1.
        """
        ...

    def open(
        self,
        path: Path,
        interface: Interface | None,
        *,
        entry: Mapping[str, Any],
        memory: str = "fast",
        threads: int | None = None,
    ) -> Session:
        """A file that ``lower`` wrote, ready to run; ``entry`` is the component's part of the manifest.

        Raises:
            ArtifactError: the runtime cannot open it.
        """
        ...


def target_names() -> list[str]:
    """Every installed target."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def find_targets(names: str) -> list[Target]:
    """The targets in a list such as ``onnx,executorch``.

    Raises:
        TrueportError: one of them is not installed, or is named twice.
    """
    listed = [name.strip() for name in names.split(",")]
    if len(set(listed)) < len(listed):
        raise TrueportError(f"{names} names a target twice", "Name each once.")
    return [find_target(name) for name in listed]


def find_target(name: str) -> Target:
    """The target called ``name``.

    Raises:
        TrueportError: none is installed under this name.
    """
    for point in entry_points(group=GROUP, name=name):
        target: Target = point.load()()
        return target
    raise TrueportError(f"There is no target {name}", f"The installed targets are: {', '.join(target_names())}.")
