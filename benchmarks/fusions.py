"""``python -m benchmarks.fusions [--quick] [--docs]``: what each fusion of the table is worth to a decode step.

The fusions of ``trueport optimize`` are added one by one, in the table's order, to the two Llamas of benchmarks.context;
milliseconds of a step at long contexts. Nothing is proven here: these are the graphs, not the folders.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import context, measure

if TYPE_CHECKING:
    from benchmarks.contenders import Contender
    from trueport.graphs.fusions import Fusion

LENGTHS = (128, 2048, 4096)
BEGIN = "<!-- benchmarks.fusions -->"


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fusions", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny shape: does everything run?")
    parser.add_argument("--turns", type=int, default=4, help="turns of eight steps at each length (default: 4)")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/optimize.md")
    given = parser.parse_args()
    words = [context.conditions(measure.machine(), given.turns)]
    with tempfile.TemporaryDirectory(prefix="trueport-fusions-") as place:
        for key_heads in (12, 4):
            words.append(_table(key_heads, Path(place) / str(key_heads), given.quick, given.turns))
            print(words[-1], flush=True)
    print(words[0])
    if given.docs:
        context.write(BEGIN, words)


def _table(key_heads: int, place: Path, quick: bool, turns: int) -> str:
    import torch

    import trueport
    from benchmarks.contenders import Ours
    from trueport.graphs.fusions import FUSIONS

    torch.set_num_threads(context.THREADS)
    trueport.export(context.model_of(key_heads, quick), place / "plain", tokenizer=None, proof=False)
    contenders: dict[str, Contender] = {"exported": Ours(place / "plain")}
    for count, fusion in enumerate(FUSIONS, 1):
        folder = place / str(count)
        if fused(place / "plain", folder, FUSIONS[:count])[fusion.name]:
            contenders[f"+ `{fusion.name}`"] = Ours(folder)
    found = {length: context.turns_at(contenders, length, turns) for length in LENGTHS}
    lines = [f"| {key_heads} key heads | " + " | ".join(map(str, LENGTHS)) + " |", "|---|" + "--:|" * len(LENGTHS)]
    for name in contenders:
        lines.append(f"| {name} | " + " | ".join(f"{found[length][name]:.1f}" for length in LENGTHS) + " |")
    return "\n".join(lines) + "\n"


def fused(plain: Path, folder: Path, fusions: Sequence[Fusion]) -> dict[str, int]:
    """A folder with fusions, unproven; by name how often each matched."""
    import onnx_ir as ir

    from trueport.artifact import MANIFEST, read_manifest, write_json
    from trueport.graphs.fusions.apply import fuse
    from trueport.graphs.loading import load
    from trueport.interface import Interface

    shutil.copytree(plain, folder, copy_function=os.link)
    manifest, counts = read_manifest(folder), Counter[str]()
    for name, entry in manifest["components"].items():
        graph = load(folder / entry["file"])
        done = fuse(graph, Interface.from_json(entry), fusions)
        counts.update({key: applied.count for key, applied in done.items()})
        (folder / entry["file"]).unlink()  # a second name of the plain folder's file
        ir.save(graph, folder / entry["file"])
        manifest["components"][name] = entry | list(done.values())[-1].interface.to_json()
    (folder / MANIFEST).unlink()
    write_json(folder / MANIFEST, manifest)
    return dict(counts)


if __name__ == "__main__":
    main()
