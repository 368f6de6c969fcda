"""``python -m benchmarks [export|decode|...|all] [--quick]``; ``docs`` writes docs/benchmarks.md of the last full runs."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import measure, shapes
from benchmarks.tables import (
    EAGER,
    FUSED_INT4,
    FUSED_INT8,
    INT4,
    INT8,
    OUR_PROGRAM,
    OURS,
    PEER,
    PEER_PROGRAM,
    PROVEN,
    Table,
    decode_table,
    export_table,
)

OUT = measure.ROOT / "out" / "benchmarks"
DOCS = measure.ROOT / "docs" / "benchmarks.md"
THREADS = 2
PROMPT, NEW = 128, 64
Results = dict[str, dict[str, list[measure.Run]]]
KINDS = ("export", "decode", "quantised-decode", "executorch-export", "executorch-decode")
CONTENDERS = {
    "export": (OURS, PROVEN, PEER),
    "decode": (OURS, PEER, EAGER),
    "quantised-decode": (OURS, INT8, INT4, FUSED_INT8, FUSED_INT4, EAGER),
    "executorch-export": (OUR_PROGRAM, PEER_PROGRAM),
    "executorch-decode": (OUR_PROGRAM, PEER_PROGRAM, OURS, EAGER),
}
"""Side by side in one run, by what is measured."""


def main() -> int:
    """Measure, print, write; 1 when a contender failed."""
    arguments = _arguments()
    if arguments.what == "docs":
        saved = _saved()
        DOCS.write_text(_markdown(_tables(saved, shapes.SHAPES), saved), encoding="utf-8")
        return 0
    titles = shapes.QUICK_SHAPES if arguments.quick else shapes.SHAPES
    kinds = KINDS if arguments.what == "all" else (arguments.what,)
    rounds = arguments.rounds or (2 if arguments.quick else 3)
    report: dict[str, Any] = {"machine": measure.machine(), "quick": arguments.quick, "rounds": rounds}
    with tempfile.TemporaryDirectory(prefix="trueport-benchmarks-") as folder:
        for kind in kinds:
            measured = _export if kind.endswith("export") else _decode
            report[kind] = {}
            for shape in arguments.shape or titles:
                report[kind][shape] = measured(kind, shape, Path(folder), arguments.quick, rounds)
                _write(OUT / f"{kind}.json", {key: report[key] for key in ("machine", "quick", "rounds", kind)}, kind)
    tables = _tables(report, titles)
    _print(tables, report)
    failed = [run for kind in kinds for runs in report[kind].values() for own in runs.values() for run in own]
    return int(any("error" in run for run in failed))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("what", nargs="?", choices=(*KINDS, "all", "docs"), default="all")
    parser.add_argument("--quick", action="store_true", help="tiny shapes, two rounds: does everything run?")
    parser.add_argument("--rounds", type=int, help="runs of each contender (default: 3, with --quick 2)")
    parser.add_argument("--shape", action="append", choices=tuple(shapes.SHAPES), help="only this one; repeatable")
    return parser.parse_args()


def _saved() -> dict[str, Any]:
    """What the last full run of each kind measured, in one report; every kind runs its contenders side by side."""
    report: dict[str, Any] = {}
    for kind in KINDS:
        path = OUT / f"{kind}.json"
        found = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {"quick": True}
        if found["quick"] or set(found[kind]) != set(shapes.SHAPES):
            sys.exit(f"There is no full run of {kind}. Run python -m benchmarks {kind}.")
        before = report.setdefault("machine", found["machine"])
        if found["machine"]["versions"] != before["versions"] or found["machine"]["cores"] != before["cores"]:
            sys.exit(f"{kind} was measured on another machine or with other versions. Run python -m benchmarks all.")
        before["load_at_start"] = max(before["load_at_start"], found["machine"]["load_at_start"])
        report["rounds"] = min(report.get("rounds", found["rounds"]), found["rounds"])
        report[kind] = found[kind]
    return report


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _export(kind: str, shape: str, folder: Path, quick: bool, rounds: int) -> dict[str, list[measure.Run]]:
    tasks = {name: _export_task(name, shape, folder, quick) for name in CONTENDERS[kind]}
    return measure.interleaved(tasks, rounds, lambda line: _tell(f"{kind} {shape}, {line}"))


def _export_task(contender: str, shape: str, folder: Path, quick: bool) -> measure.Run:
    place = folder / f"{shape} {contender}"
    return {"task": "export", "contender": contender, "shape": shape, "quick": quick, "folder": str(place)}


def _decode(kind: str, shape: str, folder: Path, quick: bool, rounds: int) -> dict[str, list[measure.Run]]:
    """Runs what the export benchmark left in ``folder``, or exports it first."""
    tasks, failed = {}, {}
    for name in CONTENDERS[kind]:
        task = _export_task(name, shape, folder, quick)
        place = Path(task["folder"])
        if name != EAGER and not place.exists():
            _tell(f"{kind} {shape}, first an export: {name}")
            made = measure.measure(task)
            if "error" in made:
                failed[name] = [made]
                continue
        tasks[name] = task | {"task": "decode", "threads": THREADS, "length": PROMPT, "count": NEW}
    runs = measure.interleaved(tasks, rounds, lambda line: _tell(f"{kind} {shape}, {line}")) | failed
    return {name: runs[name] for name in CONTENDERS[kind]}


def _tables(report: dict[str, Any], titles: dict[str, str]) -> list[Table]:
    tables = []
    for kind in KINDS:
        program, quantised = kind.startswith("executorch"), kind.startswith("quantised")
        table = export_table if kind.endswith("export") else decode_table
        words = kind.rpartition("-")[2].capitalize() + (" to ExecuTorch" if program else "")
        words += " of quantised weights" if quantised else ""
        peer = PEER_PROGRAM if program else OURS if quantised else PEER
        for shape, runs in report.get(kind, {}).items():
            tables.append(table(f"{words}: {titles[shape]}", runs, peer))
    return tables


def _conditions(report: dict[str, Any]) -> str:
    machine = report["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    busy = machine["load_at_start"] > machine["cores"] / 2
    # A load average is of the minute before: it cannot tell work that has ended from work that goes on.
    caution = " **The machine had not been idle just before: if other work went on, trust CPU seconds alone.**"
    caution = caution if busy else ""
    return (
        f"{machine['cores']} cores, {machine['memory_gib']} GiB of memory, load {machine['load_at_start']} at the "
        f"start; Python {machine['python']}, {versions}. Median of {report['rounds']} runs (smallest – largest), each "
        "in a fresh process, contenders in turns. The clock starts after the imports and the building of the model."
        + caution
    )


def _print(tables: list[Table], report: dict[str, Any]) -> None:
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=150)
    for table in tables:
        console.print(table.rich())
        console.print()
    console.print(_conditions(report), highlight=False)


def _markdown(tables: list[Table], report: dict[str, Any]) -> str:
    words = f"""# Benchmarks

Written by `python -m benchmarks docs`; not by hand. Random weights, float32, CPU.

{_conditions(report)}

- **export**: `trueport.export(model, folder, tokenizer=None)`, without and with the proof, beside
  transformers.exporters' `OnnxExporter().export_for_generation(...).save_pretrained(folder)`
  (`OnnxConfig(dynamic=True)`, a sample of two rows with padding; for T5 with `multi_token_decode=True`, because its
  past is frozen at length 1 without, and with a second export for the encoder, which it leaves to the user).
  "Extra MiB" is the peak above what the process held before: the model and the libraries. "Files / weights" is bytes
  on disk per byte of weights.
- **decode**: greedy, batch 1, a prompt of {PROMPT} tokens, {NEW} new ones, {THREADS} threads. Trueport and eager
  PyTorch go through transformers' `generate`; transformers.exporters has no `generate`, so a bare greedy loop calls
  its runners, which spares it `generate`'s own work. "Tokens/s" includes the prompt.
- **quantised**: the same folder with `--quantize int8` and `int4`; the peer is the float folder. "Fused" adds what
  `trueport optimize --caches in-place` puts together. Whether a real model keeps its gate is in quantisation.md: random
  weights have nothing to keep.
- **.pte**: the same through ExecuTorch with XNNPACK's kernels. Trueport plans for one row of 256 tokens and keeps the
  cache inside; transformers.exporters' programs take it in and give it out.
"""
    return "\n".join([words, *(table.markdown() for table in tables)]).rstrip() + "\n"


def _write(path: Path, content: dict[str, Any], kind: str) -> None:
    """The results, beside those of other shapes that were measured here before in the same way."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_file():
        before = json.loads(path.read_text(encoding="utf-8"))
        alike = all(before["machine"][key] == content["machine"][key] for key in ("versions", "cores"))
        if alike and (before["quick"], before["rounds"]) == (content["quick"], content["rounds"]):
            content = content | {kind: before[kind] | content[kind]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
