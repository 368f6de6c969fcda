"""``python -m benchmarks.quantised [--quick] [--docs]``: a decode step of float, int8 and int4 folders, and their bound.

The Llama of ``python -m benchmarks``, random weights, one step behind 128 tokens, each folder as exported and with the
fusions of ``--optimize cpu --caches in-place``; nothing is proven. The bound is the bytes of the weights that a step
reads over the bandwidth of this machine, which is measured beside. ``--docs`` writes the table into docs/quantisation.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from benchmarks import context, measure, shapes
from benchmarks.contenders import THREADS, Contender, Ours
from benchmarks.fusions import fused
from benchmarks.kernels import PLACE

BEGIN = "<!-- benchmarks.quantised -->"
KINDS = (None, "int8", "int4")
LENGTH, MEBIBYTES = 128, 1024
PRODUCTS = {"MatMul", "Gemm", "MatMulNBits"}


def main() -> None:
    """Measure and print a table in Markdown."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.quantised", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny shape: does everything run?")
    parser.add_argument("--turns", type=int, default=8, help="turns of eight steps (default: 8)")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/quantisation.md")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    about, rate = measure.machine(), _bandwidth()
    with tempfile.TemporaryDirectory(prefix="trueport-quantised-") as place:
        made, read = _contenders(Path(place), given.quick)
        found = context.turns_at(made, LENGTH, given.turns)
    rate = max(rate, _bandwidth())
    plain = found[next(iter(found))]
    lines = [
        "| folder | step, ms | times the float folder's speed | weights read, MB | bound, ms |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, milliseconds in found.items():
        figures = (
            f"{milliseconds:.1f} | {plain / milliseconds:.2f} | {read[name] / 1e6:.0f} | {read[name] / rate * 1e3:.1f}"
        )
        lines.append(f"| {name} | {figures} |")
    words = [context.conditions(about, given.turns), *lines, "", f"Bandwidth: {rate / 1e9:.0f} GB/s.\n"]
    print("\n".join(words))
    if given.docs:
        context.write(BEGIN, words, PLACE)


def _contenders(place: Path, quick: bool) -> tuple[dict[str, Contender], dict[str, int]]:
    """Folders in their sessions, and the bytes of weights that a step of each reads."""
    import trueport
    from trueport.graphs.fusions import FUSIONS

    model = shapes.build("llama", quick=quick)
    made: dict[str, Contender] = {}
    read: dict[str, int] = {}
    for kind in KINDS:
        plain, merged = place / str(kind), place / f"{kind} fused"
        trueport.export(model, plain, tokenizer=None, proof=False, quantize=kind)
        fused(plain, merged, FUSIONS)
        for folder, words in ((plain, ""), (merged, ", fused")):
            name = f"{kind or 'float'}{words}"
            made[name], read[name] = Ours(folder), _weights(folder / "onnx/model.onnx")
    return made, read


def _weights(path: Path) -> int:
    """Bytes of the matrices that one row is multiplied with."""
    from trueport.graphs.loading import load

    products = [node for node in load(path).graph if node.op_type in PRODUCTS]
    held = {
        id(value): value.const_value.nbytes
        for node in products
        for value in node.inputs
        if value is not None and value.const_value is not None
    }
    # Stored the other way round and transposed as the session opens.
    for node in products:
        for value in node.inputs:
            maker = None if value is None else value.producer()
            if maker is not None and maker.op_type == "Transpose" and maker.inputs[0].const_value is not None:
                held[id(maker.inputs[0])] = maker.inputs[0].const_value.nbytes
    return sum(held.values())


def _bandwidth() -> float:
    """Bytes that all threads together read in a second, from more memory than any cache holds."""
    import torch

    numbers = torch.ones(MEBIBYTES << 18)
    best = float("inf")
    for _ in range(4):
        begun = time.perf_counter()
        numbers.sum()
        best = min(best, time.perf_counter() - begun)
    return numbers.nbytes / best


if __name__ == "__main__":
    main()
