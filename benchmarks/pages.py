"""``python -m benchmarks.pages [--quick] [--docs]``: what large pages are worth, and what they cost as a folder opens.

The shapes and kinds of benchmarks.bound, fused, each folder opened with ``memory="fast"`` and with
``memory="pages"``. Steps behind 128 tokens are measured in turns; each turn of the one is held against the other's.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import context, measure
from benchmarks.bound import KINDS, QUICK, SHAPES, Shape, folders, model_of
from benchmarks.contenders import THREADS, Ours
from benchmarks.large import PAGE

BEGIN = "<!-- benchmarks.pages -->"
LENGTH = 128


def main() -> None:
    """Measure and print a table in Markdown."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.pages", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny shape: does everything run?")
    parser.add_argument("--turns", type=int, default=12, help="turns of eight steps (default: 12)")
    parser.add_argument("--docs", action="store_true", help=f"write the table into docs/{PAGE.name}")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    begun = measure.machine()
    lines = [
        "| | opened in, s: small pages | large | a step, ms: small pages | large | large to small, the turns' median |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, shape in (QUICK if given.quick else SHAPES).items():
        with tempfile.TemporaryDirectory(prefix="trueport-pages-") as place:
            lines += _rows(name, shape, Path(place), given.turns)
    words = [context.conditions(begun, given.turns), "\n".join(lines) + "\n"]
    print("\n".join(words))
    if given.docs:
        context.write(BEGIN, words, PAGE)


def _rows(name: str, shape: Shape, place: Path, turns: int) -> list[str]:
    """One of each kind."""
    model, rows = model_of(shape), []
    for kind in KINDS:
        _, folder = folders(model, kind, place)
        Ours(folder)  # the files are read, the libraries are there
        small, large = _opened(folder, "fast"), _opened(folder, "pages")
        steps: dict[str, list[float]] = {"small": [], "large": []}
        for turn in range(turns):
            for pages, (opened, _) in (("small", small), ("large", large))[:: 1 if turn % 2 == 0 else -1]:
                steps[pages] += context.turns_at({kind: opened}, LENGTH, 1).values()
        ratio = statistics.median(one / other for one, other in zip(steps["large"], steps["small"], strict=True))
        rows.append(
            f"| {name}, {kind} | {small[1]:.1f} | {large[1]:.1f} | {min(steps['small']):.2f} | {min(steps['large']):.2f} "
            f"| {ratio:.2f} |"
        )
        print(rows[-1], flush=True)
    return rows


def _opened(folder: Path, memory: str) -> tuple[Ours, float]:
    """A folder in its session, and the seconds that it took."""
    begun = time.perf_counter()
    opened = Ours(folder, memory)
    return opened, time.perf_counter() - begun


if __name__ == "__main__":
    main()
