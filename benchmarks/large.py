"""Peak memory and seconds of an export against layers and against parameters, beside the peers.

``python -m benchmarks.large [layers|parameters|all|none] [--tools trueport,mobius-onnx] [--memory 10] [--docs]``: Llamas
of tiny width with 12 to 96 layers, and Llamas of 0.1 to 70 billion parameters whose checkpoints are sparse files, all zeros.
Each tool exports each of them in a process of its own, mobius-onnx in its own environment (``make peers``), and is stopped
past a limit; what is larger than that is not tried. Results are kept in out/benchmarks, drawn beside them, and with
``--docs`` written into docs/large-models.md; ``none`` measures nothing. ``python -m benchmarks.peaks`` prints the memory
by phase.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, context, environments, layers, measure, plot
from benchmarks.exports import EXPORTERS, MOBIUS, OURS, TOOLS
from benchmarks.watched import Limits, watched

RESULTS = measure.ROOT / "out" / "benchmarks" / "large.json"
PAGE = measure.ROOT / "docs" / "large-models.md"
IMAGES = "images"
"""Beside the page."""
SHORT = 20
"""Seconds of a run that is worth another one: others share this machine."""


@dataclass(frozen=True)
class Series:
    """Checkpoints in one order.

    Attributes:
        title: of table and charts.
        label: of the axis.
        log: whether that axis goes in factors.
        places: where each checkpoint stands on it, by how it is called.
    """

    title: str
    label: str
    log: bool
    places: dict[str, float]


SHAPES = {"0.1B": "llama-0.1b", "1B": "llama-1b", "7B": "llama-7b", "70B": "llama-70b"}
SERIES = {
    "layers": Series("Llama, hidden 64", "layers", False, {str(n): n for n in (12, 24, 48, 80, 96)}),
    "parameters": Series(
        "Llama, float32", "parameters, billions", True, {"0.1B": 0.134, "1B": 1.1, "7B": 6.74, "70B": 69.0}
    ),
}
VALUES = {"memory": ("peak_gb", "GB", "Peak memory"), "seconds": ("seconds", "s", "Seconds")}
"""What is drawn: its key, its unit, its name."""
AIMS = {"layers": 1.3, "mobius": 2.0, "exporters": 0.3}
"""Of 80 layers' time to 12 layers', of Trueport's to mobius-onnx's at 80 layers, to transformers.exporters' at 0.1B."""


def main() -> None:
    """Measure, print, draw."""
    given = _arguments()
    report = _saved()
    limits = Limits(given.memory, given.seconds, given.disk)
    with tempfile.TemporaryDirectory(prefix="trueport-large-", dir=given.folder) as place:
        names = SERIES if given.what == "all" else () if given.what == "none" else (given.what,)
        for name, turn, tool in itertools.product(names, range(given.turns), given.tools.split(",")):
            runs = report["runs"].setdefault(name, {})
            for found in _runs(name, tool, Path(place), limits, runs[tool] if turn else {}):
                runs[tool] = runs[tool] | found if turn else found
                RESULTS.parent.mkdir(parents=True, exist_ok=True)
                RESULTS.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    words = [_conditions(report), *(_section(name, runs) for name, runs in report["runs"].items())]
    print("\n".join(words))
    _draw(report, RESULTS.parent)
    if given.docs:
        _draw(report, PAGE.parent / IMAGES)
        for name, text in zip(("conditions", *report["runs"]), words, strict=True):
            context.write(f"<!-- benchmarks.large {name} -->", [text], PAGE)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("what", nargs="?", choices=(*SERIES, "all", "none"), default="all")
    parser.add_argument("--tools", default=",".join(TOOLS), help="which of them, with commas; the others' results stay")
    parser.add_argument("--memory", type=float, default=10, help="GB at which a process is stopped")
    parser.add_argument("--seconds", type=float, default=160, help="seconds at which it is stopped")
    parser.add_argument("--disk", type=float, default=30, help="GB written at which it is stopped")
    parser.add_argument("--turns", type=int, default=1, help=f"runs of what takes less than {SHORT} s; the best counts")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    parser.add_argument("--docs", action="store_true", help="write the tables and charts into docs/large-models.md")
    given = parser.parse_args()
    if unknown := set(given.tools.split(",")) - set(TOOLS):
        parser.error(f"no such tool: {', '.join(sorted(unknown))}; there are {', '.join(TOOLS)}")
    return given


def _saved() -> dict[str, Any]:
    """What earlier runs measured here with the same versions."""
    machine = measure.machine()
    if RESULTS.is_file():
        before: dict[str, Any] = json.loads(RESULTS.read_text(encoding="utf-8"))
        if all(before["machine"][key] == machine[key] for key in ("versions", "cores", "memory_gib")):
            return before
    return {"machine": machine, "runs": {}}


def _runs(
    name: str, tool: str, place: Path, limits: Limits, before: dict[str, measure.Run]
) -> Iterator[dict[str, measure.Run]]:
    """One tool on the checkpoints of one series, the small ones first, until one does not fit; all so far, each time.

    What was measured before stays where that was faster, and is not measured again where it took long.
    """
    found: dict[str, measure.Run] = {}
    for size in SERIES[name].places:
        earlier = before.get(size)
        if earlier is not None and not earlier.get("seconds", SHORT) < SHORT:
            found[size] = earlier
            continue
        failed = next((at for at, run in found.items() if "stopped" in run or "error" in run), None)
        if failed is not None:
            found[size] = {"untried": failed}
            yield found
            continue
        checkpoint = place / f"{name}-{size}"
        if not checkpoint.exists():
            _make(name, size, checkpoint)
        if not found:  # a run that reads the libraries from the disk, and leaves their bytecode behind
            if not (place / "warm").exists():
                layers.make("llama", 2, place / "warm")
            _run(tool, place / "warm", place, limits)
        run = _run(tool, checkpoint, place, limits)
        turns = 1 + (earlier or {}).get("turns", 0)
        found[size] = min((run, earlier or run), key=lambda one: one.get("seconds", math.inf)) | {"turns": turns}
        print(f"{name} {size}, {tool}: {_cell(run)}", file=sys.stderr, flush=True)
        yield found


def _make(name: str, size: str, checkpoint: Path) -> None:
    if name == "layers":
        layers.make("llama", int(size), checkpoint)
    else:
        checkpoints.make(SHAPES[size], checkpoint, dtype="float32")


def _run(tool: str, checkpoint: Path, place: Path, limits: Limits) -> measure.Run:
    try:
        python = environments.python_of(MOBIUS) if tool == MOBIUS else Path(sys.executable)
    except environments.MissingError as missing:
        return {"error": str(missing)}
    out, load = place / "out", os.getloadavg()[0]
    # Bytecode is kept as any installed package's is, wherever the interpreter would put it.
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    paths = [str(measure.ROOT), *([str(measure.ROOT / "src")] if tool == OURS else [])]
    environment = kept | {
        "PYTHONPYCACHEPREFIX": str(place / "bytecode"), "PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "2",
    }  # fmt: skip
    command = [str(python), "-m", "benchmarks.exports", tool, str(checkpoint), str(out)]
    try:
        result = watched(command, out, limits, environment=environment, folder=place)
    finally:
        shutil.rmtree(out, ignore_errors=True)
    return result | json.loads(result.pop("printed", "{}")) | {"load": load, "limits": str(limits)}


def _cell(run: measure.Run) -> str:
    if not run:
        return ""
    if "untried" in run:
        return "–"
    if "error" in run:
        return f"failed: {run['error']}"
    if "stopped" in run:
        return f"stopped at {run['stopped']}"
    return f"{run['seconds']:.1f} s, {run['peak_gb']:.2f} GB"


def _section(name: str, runs: dict[str, dict[str, measure.Run]]) -> str:
    """The table, its charts, and how the figures stand to what issue 6 asks for."""
    series, runs = SERIES[name], _ordered(runs)
    lines = [f"| {series.title}: {series.label} | {' | '.join(runs)} |", "|--:|" + "--:|" * len(runs)]
    for size in series.places:
        lines.append(f"| {size} | {' | '.join(_cell(own.get(size, {})) for own in runs.values())} |")
    pictures = [f"![{VALUES[value][2]} against {series.label}]({IMAGES}/{name}-{value}.svg)" for value in VALUES]
    return "\n".join(["", *lines, "", *_verdicts(name, runs), *pictures]) + "\n"


def _ordered(runs: dict[str, dict[str, measure.Run]]) -> dict[str, dict[str, measure.Run]]:
    """Those that were measured, in the tools' order: a tool has one colour in all charts."""
    return {tool: runs[tool] for tool in TOOLS if tool in runs}


def _verdicts(name: str, runs: dict[str, dict[str, measure.Run]]) -> list[str]:
    """Ratios of two exports, after the imports and of the whole processes."""
    asked = {
        "layers": (
            ("80 layers to 12", (OURS, "80"), (OURS, "12"), AIMS["layers"]),
            ("Trueport to mobius-onnx at 80 layers", (OURS, "80"), (MOBIUS, "80"), AIMS["mobius"]),
        ),
        "parameters": (
            ("Trueport to transformers.exporters at 0.1B", (OURS, "0.1B"), (EXPORTERS, "0.1B"), AIMS["exporters"]),
        ),
    }
    words = []
    for text, *pair, aim in asked[name]:
        above, below = (runs.get(tool, {}).get(size, {}) for tool, size in pair)
        if "seconds" in above and "seconds" in below:
            after, whole = (above[key] / below[key] for key in ("seconds", "all_seconds"))
            words.append(f"{text} {after:.2f}, with the imports {whole:.2f} (aim: {aim:g})")
    return [f"Time: {'; '.join(words)}.", ""] if words else []


def _conditions(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    every = [run for runs in report["runs"].values() for own in runs.values() for run in own.values() if "load" in run]
    loads = [run["load"] for run in every] or [0.0]
    limits = sorted({run["limits"] for run in every})
    most = max((run.get("turns", 1) for run in every), default=1)
    imports = [run["import_seconds"] for run in every if "import_seconds" in run] or [0.0]
    return (
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, 2 threads; {versions}, mobius-onnx 0.1.0. Each run "
        f"in a process of its own; of those below {SHORT} s the best of {most} counts; load {min(loads):.1f} to "
        f"{max(loads):.1f} at the starts. Seconds from the checkpoint on the disk to the files on the disk, after the "
        f"imports ({min(imports):.1f} to {max(imports):.1f} s more); resident memory at most, mapped files included. "
        f"Limits: {'; or '.join(limits)}; what is larger than what was stopped "
        "is not tried (–).\n"
    )


def _draw(report: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, runs in report["runs"].items():
        series = SERIES[name]
        for value, (key, unit, title) in VALUES.items():
            lines = {
                tool: plot.Line(
                    [(series.places[size], run[key]) for size, run in own.items() if "seconds" in run],
                    [series.places[size] for size, run in own.items() if "stopped" in run],
                )
                for tool, own in _ordered(runs).items()
            }
            picture = plot.chart(
                f"{title} of an export ({series.title})",
                (series.label, f"{title.lower()}, {unit}" if unit != "s" else "seconds"),
                lines,
                log=(series.log, True),
                note="× stopped" if any(line.stopped for line in lines.values()) else "",
            )
            (folder / f"{name}-{value}.svg").write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
