"""How much memory a proof may take, and what it does to keep to that."""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from trueport.errors import TrueportError
from trueport.resident import Mapping, mapped_as, release, resident, watched
from trueport.words import count_words, size_words

if TYPE_CHECKING:
    from torch import nn

SHARE = 0.8
"""Of the memory that is free when a proof begins, it may take so much where nobody says otherwise."""
UNITS = {
    "": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}
LOADED = 2
"""An artefact that is opened fast takes its weights' bytes about so often: as files, and folded and prepacked."""
RELEASED = 0.5
"""Of the limit: past it the pages of mapped files are given back to the system."""
FEW = 0.125
"""Of the limit: fewer mapped pages than that are left, as what is given back is read again at once."""
SECONDS = 0.005
"""Between two looks at the process's memory."""
HELD = 32
"""Bytes for each number that a model gives out: the original's and the artefact's, in float64, as they came, compared."""
SCORES = 8
"""Bytes for each score of an attention layer in the artefact's runtime: float32, before and after the softmax."""
EAGER = 24
"""The same in the float64 original, where it computes attention step by step."""
ANSWERS = 0.4
"""Of the limit, for the answers to one batch."""


class TooLargeError(TrueportError):
    """A batch whose answers would take more memory than a proof may."""


@dataclass(eq=False)
class Memory:
    """The memory of one proof.

    Attributes:
        limit: bytes of the whole process, mapped pages included.
        needed: bytes that the proof would take with a float64 copy of the original, and the artefact opened fast.
        wide: those of the copy alone.
        files: whose mapped pages may be given back.
        places: the same, as ``mapped_as`` names them.
        unwritten: those of their mappings in which nothing was written, as ``release`` takes them.
        copied: why a copy was made after all; empty where none was.
        unheld: weights of the original that were not held against the checkpoint by other means.
        peak: the most that was seen while ``kept``.
        peak_anonymous: the same without mapped pages.
    """

    limit: int
    needed: int = 0
    wide: int = 0
    files: list[Path] = field(default_factory=list)
    places: set[str] = field(default_factory=set)
    unwritten: set[Mapping] = field(default_factory=set)
    copied: str = ""
    unheld: list[str] = field(default_factory=list)
    peak: int = 0
    peak_anonymous: int = 0

    @property
    def streamed(self) -> bool:
        """Whether no second copy of the weights is made, and the artefact's are mapped."""
        return self.needed > self.limit

    def afford(self, what: str, size: int) -> None:
        """Raise TooLargeError for inputs, in words, whose answers take ``size`` bytes on their way."""
        if size > self.limit * ANSWERS:
            raise TooLargeError(
                f"the answers to {what} take {size_words(size)}, of which a proof memory of "
                f"{size_words(self.limit)} leaves {size_words(int(self.limit * ANSWERS))}",
                "Give a larger --proof-memory.",
            )

    def copy(self, why: str, model: nn.Module | None = None) -> None:
        """Raise TrueportError where a copy of the model's weights, or else the float64 copy, is more than there may be."""
        parameters = [] if model is None else list(model.parameters())
        size = sum(part.numel() * part.dtype.itemsize for part in parameters) if model is not None else self.wide
        if self.streamed and size > self.limit:
            raise TrueportError(
                f"{why}, which takes {size_words(size)} more than the proof memory of {size_words(self.limit)}",
                "Give a larger --proof-memory.",
            )

    @property
    def opened(self) -> str:
        """How the artefact is opened, as ``trueport.load`` takes it."""
        return "map" if self.streamed else "fast"

    def words(self) -> list[str]:
        """What the proof did otherwise to keep to its memory; nothing where it did as ever."""
        if not self.streamed:
            return []
        copy, most = size_words(self.wide), size_words(self.limit)
        found = [
            f"{self.copied}, which takes {copy}"
            if self.copied
            else f"The original's weights were cast where they are read: a float64 copy of them takes {copy}, and the proof "
            f"may take {most} in all",
            "The artefact was opened with memory='map'; how a runtime computes that folds and prepacks its weights under "
            "memory='fast', as ONNX Runtime does, was not asked",
        ]
        if self.unheld:
            found.append(
                "Original and artefact read the checkpoint by the same means; "
                f"{count_words(len(self.unheld), 'weight')} that transformers makes of several tensors, such as "
                f"{self.unheld[0]}, were too large to be held against what safetensors and torch make of them"
            )
        if self.peak > self.limit:
            found.append(
                f"It took {size_words(self.peak)} at most, more than it may: {size_words(self.peak_anonymous)} of it "
                "are no pages of files"
            )
        return found

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Within, mapped pages are given back whenever the process comes near the limit."""
        if not self.streamed:
            yield
            return
        self.places |= {mapped_as(path) for path in self.files if path.is_file()}
        with watched(self._look, SECONDS):
            yield

    def _look(self, total: int, shared: int) -> None:
        self.peak, self.peak_anonymous = max(self.peak, total), max(self.peak_anonymous, total - shared)
        if total > self.limit * RELEASED and shared > self.limit * FEW:
            release(self.places, self.unwritten)


ANY = Memory(2**63)
"""Where nobody counts."""


def available() -> int:
    """Bytes that this process may have at most: those that it has and those that are free, control groups obeyed."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
        free = min([free, *_group_free()])
        return free + resident()[0]
    except (OSError, StopIteration, ValueError):  # no Linux
        return os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE // 2


def _group_free() -> list[int]:
    """What the process's own control group still allows, where it has a limit."""
    place = Path("/sys/fs/cgroup")
    try:
        most = (place / "memory.max").read_text().strip()
        used = int((place / "memory.current").read_text())
        files = re.search(r"^file (\d+)$", (place / "memory.stat").read_text(), re.MULTILINE)
        return [] if most == "max" else [max(int(most) - used + (int(files[1]) if files else 0), 0)]
    except (OSError, ValueError):
        return []


def memory_bytes(given: int | str | None) -> int | None:
    """Bytes of ``4GB``, ``512MiB`` or a number; None for None.

    Raises:
        TrueportError: it says no number of bytes.
    """
    if given is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", str(given).lower())
    unit = UNITS.get(found[2]) if found else None
    if found is None or unit is None or not 1 <= float(found[1]) * unit < float("inf"):
        raise TrueportError(f"{given!r} is no amount of memory", "Give bytes, or a number with a unit such as 4GB.")
    return int(float(found[1]) * unit)


def plan(limit: int | str | None, model: nn.Module | None, folder: Path, *, loaded: bool = True) -> Memory:
    """How a proof of ``folder`` keeps to ``limit``.

    Args:
        limit: bytes, as ``memory_bytes`` reads them; ``SHARE`` of what is available when None.
        model: the original; its parameters need no memory.
        folder: the artefact.
        loaded: whether the original's weights are in memory already.
    """
    most = memory_bytes(limit)
    files = [path for path in folder.rglob("*") if path.is_file()]
    size = sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in (path.stat() for path in files)}.values())
    parameters = list(model.parameters()) if model is not None else []
    wide = sum(8 * parameter.numel() for parameter in parameters)
    own = 0 if loaded else sum(parameter.numel() * parameter.dtype.itemsize for parameter in parameters)
    now = resident()[0] if Path("/proc/self/statm").exists() else 0
    needed = now + wide + own + LOADED * size
    return Memory(int(SHARE * available()) if most is None else most, needed, wide, files)
