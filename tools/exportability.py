"""How many models of the zoo torch.export takes, in three ways; the table is docs/exportability.md.

python tools/exportability.py                  writes docs/exportability.md
python tools/exportability.py --only t5 bart   prints those rows and writes nothing
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "exportability.md"
WAYS = {
    "plain": "torch.export.export",
    "exporters": "transformers.exporters' DynamoExporter",
    "exportable": "torch.export.export within trueport.exportable",
}
TIMEOUT = 900
VERSIONS = ("torch", "transformers")
CLOSE = 1e-3
"""Of the result's largest magnitude: far above rounding, far below a wrong mask."""
Row = dict[str, Any]


def main() -> int:
    """Exit code 0 when every row could be made."""
    arguments = _arguments()
    sys.path.insert(0, str(ROOT))
    from tests import zoo

    if arguments.worker:
        way, *names = arguments.worker
        if way == "exportable":
            _imported()
        for name in names:
            print(json.dumps(attempt(zoo.build(name), way) | {"name": name, "way": way}), flush=True)
        return 0
    names = [entry.name for entry in zoo.ENTRIES if not arguments.only or entry.name in arguments.only]
    if not names:
        print("not in the zoo", file=sys.stderr)
        return 2
    rows = [row for way in WAYS for row in _rows(way, names)]
    if arguments.only:
        print(table(rows))
    else:
        DOCS.write_text(document(rows), encoding="utf-8")
        print(DOCS.relative_to(ROOT))
    return 0


def _imported() -> None:
    """Import what the context needs, which happens once in a process and belongs to no model."""
    from torch import nn

    import trueport

    with trueport.exportable(nn.Identity()):
        pass


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models of the zoo")
    parser.add_argument("--worker", nargs="+", help=argparse.SUPPRESS)
    return parser.parse_args()


def _rows(way: str, names: list[str]) -> list[Row]:
    """One process for a way, so that none sees what another registered; a crash costs the model it happened at."""
    rows: list[Row] = []
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    while len(rows) < len(names):
        rest = names[len(rows) :]
        command = [sys.executable, str(Path(__file__).resolve()), "--worker", way, *rest]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT * len(rest)
            )
            output = done.stdout
        except subprocess.TimeoutExpired as late:
            output = late.stdout.decode() if isinstance(late.stdout, bytes) else late.stdout or ""
        lines = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
        rows += lines
        if len(lines) < len(rest):
            rows.append({"name": rest[len(lines)], "way": way, "verdict": "crashed", "why": "the process died"})
        print(f"{way}: {len(rows)} of {len(names)}", file=sys.stderr, flush=True)
    return rows


def attempt(model: Any, way: str) -> Row:
    """One model in one way: whether it exports, and whether the program is the model at other sizes."""
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    inputs = _inputs(model, 2, 9)
    try:
        program, seconds, context = _exported(model, way, inputs)
    except Exception as error:
        return {"verdict": "no", "why": _first_line(error)}
    verdict, why = _judged(model, way, program)
    return {"verdict": verdict, "why": why, "seconds": seconds, "context": context}


def _exported(model: Any, way: str, inputs: dict[str, Any]) -> tuple[Any, float, float]:
    """The program, the seconds that the whole took, and those of them that the context took."""
    import torch

    start = time.perf_counter()
    if way == "exporters":
        from transformers.exporters.configs import DynamoConfig
        from transformers.exporters.exporter_dynamo import DynamoExporter

        program = DynamoExporter().export_program(model, inputs, DynamoConfig(dynamic=True))
        program = program[0] if isinstance(program, tuple) else program
        return program, time.perf_counter() - start, 0.0
    dynamic = {name: dict.fromkeys(_axes(tensor), torch.export.Dim.AUTO) for name, tensor in inputs.items()}
    if way == "plain":
        program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic, strict=False)
        return program, time.perf_counter() - start, 0.0
    import trueport

    start = time.perf_counter()
    manager = trueport.exportable(model, inputs=inputs)
    manager.__enter__()
    entered = time.perf_counter()
    try:
        program = torch.export.export(model, (), inputs, dynamic_shapes=dynamic, strict=False)
        exported = time.perf_counter()
    finally:
        manager.__exit__(None, None, None)
    end = time.perf_counter()
    return program, end - start, (entered - start) + (end - exported)


def _axes(tensor: Any) -> range:
    """Batch and length of tokens; the batch alone of pixels and features, whose sizes the config fixes."""
    return range(2 if tensor.ndim == 2 else 1)


def _inputs(model: Any, rows: int, length: int) -> dict[str, Any]:
    import torch

    config = model.config
    generator = torch.Generator().manual_seed(rows + length)
    inputs: dict[str, Any] = {}
    if model.main_input_name == "pixel_values":
        shape = (rows, config.num_channels, config.image_size, config.image_size)
        inputs["pixel_values"] = torch.randn(shape, generator=generator)
    elif model.main_input_name == "input_features":
        shape = (rows, config.num_mel_bins, 2 * config.max_source_positions)
        inputs["input_features"] = torch.randn(shape, generator=generator)
    else:
        inputs["input_ids"] = torch.randint(5, 95, (rows, length), generator=generator)
        inputs["attention_mask"] = torch.ones((rows, length), dtype=torch.long)
        inputs["attention_mask"][0, length - 2 :] = 0
    if config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.randint(5, 95, (rows, max(length - 4, 2)), generator=generator)
    import inspect

    takes = inspect.signature(model.forward).parameters
    return {name: tensor for name, tensor in inputs.items() if name in takes}


def _judged(model: Any, way: str, program: Any) -> tuple[str, str]:
    """At three other sizes: ``yes``, ``one size``, or ``differs``."""
    from contextlib import nullcontext

    import torch
    from torch.utils import _pytree as pytree

    import trueport

    for rows, length in ((2, 9), (3, 16), (1, 33)):
        inputs = _inputs(model, rows, length)
        try:
            with torch.no_grad():
                wanted = _first(model(**inputs))
        except Exception:
            continue
        try:
            with trueport.exportable(model, rewrite=False) if way == "exportable" else nullcontext(), torch.no_grad():
                found = pytree.tree_leaves(program.module()(**inputs))
        except Exception as error:
            return "one size", f"({rows}, {length}): {_first_line(error)}"
        got = next(leaf for leaf in found if isinstance(leaf, torch.Tensor))
        if got.shape != wanted.shape:
            return "differs", f"({rows}, {length}): shape {tuple(got.shape)}, not {tuple(wanted.shape)}"
        error = float((got - wanted).abs().max() / wanted.abs().max())
        if not error <= CLOSE:
            return "differs", f"({rows}, {length}): off by {error:.2g} of the largest"
    return "yes", ""


def _first(result: Any) -> Any:
    return result["logits"] if "logits" in result else result[0]


def _first_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = text.replace(str(ROOT), ".").replace(sys.prefix, "<environment>").replace("|", "\\|")
    return f"{type(error).__name__}: {text}"[:160]


def table(rows: list[Row]) -> str:
    """A line for each model."""
    by_name: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_name.setdefault(row["name"], {})[row["way"]] = row
    lines = ["| model | plain | exporters | exportable | export, s | context, s |", "|---|---|---|---|--:|--:|"]
    for name, ways in by_name.items():
        ours = ways["exportable"]
        seconds = f"{ours['seconds'] - ours['context']:.1f}" if "seconds" in ours else "–"
        added = f"{ours['context']:.2f}" if "seconds" in ours else "–"
        cells = [name, *(_cell(ways[way]) for way in WAYS), seconds, added]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(row: Row) -> str:
    why = f": {row['why']}" if row["why"] else ""
    return row["verdict"] if row["verdict"] == "yes" else f"**{row['verdict']}**{why}"


def document(rows: list[Row]) -> str:
    """docs/exportability.md."""
    ways = {way: [row for row in rows if row["way"] == way] for way in WAYS}
    counts = "\n".join(
        f"| {words} | {_of(ways[way], 'yes')} | {_of(ways[way], 'one size')} | {_of(ways[way], 'differs')} "
        f"| {_of(ways[way], 'no') + _of(ways[way], 'crashed')} |"
        for way, words in WAYS.items()
    )
    ours = [row for row in ways["exportable"] if "seconds" in row]
    total, added = sum(row["seconds"] - row["context"] for row in ours), sum(row["context"] for row in ours)
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    return f"""# Exportability

Written by `python tools/exportability.py`; not by hand. Each row is one model of `tests/zoo.py`, called as its
users call it: tokens and a mask with padding (2, 9), its cache given back where its config says so, batch and length
`Dim.AUTO`. "yes" is an export whose program gives the model's result at (2, 9), (3, 16) and (1, 33), within {CLOSE:g}
of the largest magnitude; "one size" one that refuses another size; "differs" one that runs there and is wrong. {versions}.

| way | yes | one size | differs | no |
|---|--:|--:|--:|--:|
{counts}

`trueport.exportable` took {added:.1f} s of contexts for {total:.0f} s of exports: **{100 * added / total:.1f} %**.
`trueport.export` states more about its sizes and feeds caches too: [coverage.md](coverage.md).

{table(rows)}
"""


def _of(rows: list[Row], verdict: str) -> int:
    return sum(row["verdict"] == verdict for row in rows)


if __name__ == "__main__":
    sys.exit(main())
