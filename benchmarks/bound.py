"""``python -m benchmarks.bound [--quick] [--docs]``: decode steps of float, int8 and int4 folders against their bound.

The bound is what a step has to read, weights and cache, over the bandwidth of this machine. Others may share that, and it
swings, so it is measured before and behind each turn of steps, and a turn is held against what was measured beside it. Of
what a step reads the processor's cache may keep a part until the next, so that it takes less than the memory's bandwidth
says; a remark holds the steps against numbers of just as many bytes, read again and again.
Llamas with random weights, one row, a step behind 128 and behind 4096 tokens: Trueport's folders as exported and with the
fusions of ``--optimize cpu --caches in-place``, unproven, beside PyTorch and the graph of mobius-onnx (``make peers``).
``--docs`` writes the tables into docs/large-models.md.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import context, environments, measure
from benchmarks.contenders import THREADS, Contender, Graph, Ours, Static
from benchmarks.fusions import fused
from benchmarks.large import PAGE
from benchmarks.products import Products
from benchmarks.products import weights as weights_of

BEGIN = "<!-- benchmarks.bound -->"
KINDS = ("float", "int8", "int4")
LARGE = 128
"""Weights that share a scale where speed is all (docs/quantisation.md)."""
AIMS = {"float": 0.9, "int8": 0.7, "int4": 0.6}
"""Share of the bound: what issue 6 asks for."""
FASTER = {"int8": 3, "int4": 4}
"""Steps in one of the float folder's: what issue 5 asks of about 100 million weights."""
LENGTHS = (128, 4096)
MEBIBYTES = 1024
PAUSE = 0.2
"""Seconds before the bandwidth is measured, and behind it: a library's threads wait for more work by spinning."""
EAGER = "eager PyTorch, static cache"
ALONE = {kind: f"the products of {kind} alone" for kind in KINDS}
"""What the runtime's kernels make of it: nothing lies between them, and no cache is read."""


@dataclass(frozen=True)
class Shape:
    """A Llama.

    Attributes:
        sizes: of its config.
        plain: whether the folders without fusions are measured too.
    """

    sizes: dict[str, int]
    plain: bool


def _sizes(layers: int, hidden: int, heads: int, groups: int, inner: int, vocabulary: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers, "hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": groups,
        "intermediate_size": inner, "vocab_size": vocabulary, "max_position_embeddings": 8192,
    }  # fmt: skip


SHAPES = {
    "0.1B": Shape(_sizes(12, 768, 12, 12, 2048, 32_000), plain=True),
    "0.5B": Shape(_sizes(24, 1280, 20, 4, 3456, 32_000), plain=False),
}
QUICK = {"tiny": Shape(_sizes(2, 64, 4, 2, 160, 320), plain=True)}


@dataclass(frozen=True)
class Found:
    """What was measured of one shape.

    Attributes:
        turns: (seconds of a step, bytes that were read in a second beside it, the same of no more numbers than the step
            reads), by contender and length.
        weights: bytes that a step multiplies with, by contender.
        cache: bytes of keys and values behind one token, by contender.
    """

    turns: dict[str, dict[int, list[tuple[float, float, float]]]]
    weights: dict[str, int]
    cache: dict[str, int]

    @property
    def bandwidths(self) -> list[float]:
        """Bytes in a second, each time that they were measured."""
        return [rate for lengths in self.turns.values() for turns in lengths.values() for _, rate, _ in turns]

    def step(self, name: str, length: int) -> float:
        """Seconds, of the best turn."""
        return min(seconds for seconds, _, _ in self.turns[name][length])

    def read(self, name: str, length: int) -> int:
        """Bytes of a step, the new token's own key among them."""
        return self.weights[name] + (length + 1) * self.cache[name]

    def share(self, name: str, length: int) -> float:
        """Of the bound, the turns' median: 1 where a step takes no longer than reading from memory does."""
        read = self.read(name, length)
        return statistics.median(read / rate / seconds for seconds, rate, _ in self.turns[name][length])

    def own(self, name: str, length: int) -> float:
        """The same, of numbers of as many bytes that are read again and again."""
        read = self.read(name, length)
        return statistics.median(read / rate / seconds for seconds, _, rate in self.turns[name][length])

    def worst(self, name: str, length: int) -> float:
        """Of the bound that the best bandwidth of all turns would set."""
        return self.read(name, length) / max(self.bandwidths) / self.step(name, length)

    def faster(self, name: str, than: str, length: int) -> float:
        """How many steps of one fit into a step of another, the turns' median."""
        pairs = zip(self.turns[than][length], self.turns[name][length], strict=True)
        return statistics.median(slow[0] / fast[0] for slow, fast in pairs)


def main() -> None:
    """Measure and print tables in Markdown."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.bound", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny shape: does everything run?")
    parser.add_argument("--turns", type=int, default=6, help="turns of eight steps at each length (default: 6)")
    parser.add_argument("--shape", action="append", choices=tuple(SHAPES), help="only this one; repeatable")
    parser.add_argument("--docs", action="store_true", help=f"write the tables into docs/{PAGE.name}")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    words = [context.conditions(measure.machine(), given.turns)]
    for name, shape in QUICK.items() if given.quick else SHAPES.items():
        if not given.shape or name in given.shape:
            with tempfile.TemporaryDirectory(prefix="trueport-bound-") as place:
                words.append(table(name, _found(shape, Path(place), given.turns)))
            print(words[-1], flush=True)
    print(words[0])
    if given.docs:
        context.write(BEGIN, words, PAGE)


def _found(shape: Shape, place: Path, turns: int) -> Found:
    made, weights, config = _contenders(shape, place)
    numbers = _buffer()
    cache = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim * 4
    caches = {name: 0 if name.startswith(tuple(ALONE.values())) else cache for name in made}
    found = Found({name: {n: [] for n in LENGTHS} for name in made}, weights, caches)
    for turn in range(turns):
        for length in LENGTHS:
            before = bandwidth(numbers)
            for name in list(made)[:: 1 if turn % 2 == 0 else -1]:
                milliseconds = context.turns_at({name: made[name]}, length, 1)[name]
                after = bandwidth(numbers)
                own = bandwidth(numbers[: found.read(name, length) // 4], 16)
                found.turns[name][length].append((milliseconds / 1e3, (before + after) / 2, own))
                before = after
    return found


def _contenders(shape: Shape, place: Path) -> tuple[dict[str, Contender], dict[str, int], Any]:
    """In their sessions, the bytes of weights that a step of each reads, and the model's config."""
    model = model_of(shape)
    made: dict[str, Contender] = {}
    weights: dict[str, int] = {}
    for kind in KINDS:
        for size in (None,) if kind == "float" else (None, LARGE):
            words = f"{kind}{_in_blocks(size)}"
            plain, merged = folders(model, kind, place, size)
            for folder, name in ((plain, words),) * (shape.plain and size is None) + ((merged, f"{words}, fused"),):
                made[name], weights[name] = Ours(folder), weights_of(folder / "onnx/model.onnx")
            if words not in made:  # it was on the way only, and disks are small
                shutil.rmtree(plain)
            alone = f"{ALONE[kind]}{_in_blocks(size)}"
            made[alone], weights[alone] = Products(merged / "onnx/model.onnx"), weights[f"{words}, fused"]
    made[EAGER], weights[EAGER] = Static(model), weights["float, fused"]
    try:
        model.save_pretrained(place / "checkpoint")
        (path,) = environments.graphs(environments.MOBIUS, place / "checkpoint", place / "mobius")
    except environments.MissingError as missing:
        print(f"{environments.MOBIUS}: {missing}", flush=True)
    else:
        name = environments.MOBIUS
        made[name], weights[name] = Graph(path, model.config, shared=False), weights["float, fused"]
    return made, weights, model.config


def _in_blocks(size: int | None) -> str:
    return "" if size is None else f", blocks of {size}"


def model_of(shape: Shape) -> Any:
    """A Llama with random weights."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(**shape.sizes, tie_word_embeddings=True, pad_token_id=0)
    return transformers.LlamaForCausalLM(config).eval()


def folders(model: Any, kind: str, place: Path, block_size: int | None = None) -> tuple[Path, Path]:
    """One of KINDS as exported and with the fusions, both unproven."""
    import trueport
    from trueport.graphs.fusions import FUSIONS

    name = kind if block_size is None else f"{kind} {block_size}"
    plain, merged = place / name, place / f"{name} fused"
    trueport.export(
        model, plain, tokenizer=None, proof=False, quantize=None if kind == "float" else kind, block_size=block_size
    )
    fused(plain, merged, FUSIONS)
    return plain, merged


def table(title: str, found: Found) -> str:
    """Markdown: tokens per second and shares of the bound, and how they stand to the aims."""
    columns = [f"{length} tokens: tokens/s | share of the bound" for length in LENGTHS]
    lines = [f"| {title} | weights read, MB | {' | '.join(columns)} |", "|---|" + "--:|" * (1 + 2 * len(LENGTHS))]
    for name in found.turns:
        figures = [f"{1 / found.step(name, n):.1f} | {found.share(name, n):.2f}" for n in LENGTHS]
        lines.append(f"| {name} | {found.weights[name] / 1e6:.0f} | {' | '.join(figures)} |")
    cache = max(found.cache.values())
    caches = " and ".join(f"{length * cache / 1e6:.0f}" for length in LENGTHS)
    rates = sorted(rate / 1e9 for rate in found.bandwidths)
    remark = (
        f"Cache read: {caches} MB. Bandwidth: {rates[0]:.1f} to {rates[-1]:.1f} GB/s, {statistics.median(rates):.1f} in the "
        f"middle. Best shares: {_verdicts(found, Found.share)}. Against as many bytes, read again and again, of "
        f"which the cache keeps a part: {_verdicts(found, Found.own)}. Best step of all against best bandwidth of all: "
        f"{_verdicts(found, Found.worst)}. Behind {LENGTHS[0]} tokens {_ratios(found)}.\n"
    )
    return "\n".join([*lines, "", remark])


def _ratios(found: Found) -> str:
    """How many times as fast as the float folder the others are, whole steps and their products alone."""
    words = []
    for kind in KINDS[1:]:
        figures = []
        for size in (None, LARGE):
            whole = found.faster(f"{kind}{_in_blocks(size)}, fused", "float, fused", LENGTHS[0])
            products = found.faster(f"{ALONE[kind]}{_in_blocks(size)}", ALONE["float"], LENGTHS[0])
            figures.append(f"{whole:.1f}{_in_blocks(size)} (its products alone {products:.1f})")
        words.append(f"{kind} is {' and '.join(figures)} times as fast as float (aim: {FASTER[kind]:g})")
    return ", ".join(words)


def _verdicts(found: Found, share: Callable[[Found, str, int], float]) -> str:
    """Each kind's best shares at all lengths, beside what is aimed at."""
    words = []
    for kind, aim in AIMS.items():
        own = [name for name in found.turns if name.split(",")[0] == kind]
        shares = [max(share(found, name, length) for name in own) for length in LENGTHS]
        words.append(f"{kind} {' and '.join(f'{value:.2f}' for value in shares)} (aim: {aim:g})")
    return ", ".join(words)


def _buffer() -> Any:
    """More memory than any cache holds, in pages as large as those of the weights."""
    import torch

    from trueport.runtime.large_pages import large_pages

    with large_pages():
        return torch.ones(MEBIBYTES << 18)


def bandwidth(numbers: Any, readings: int = 4) -> float:
    """Bytes that all threads together read in a second, in the middle of a few readings, as a turn's steps count."""
    time.sleep(PAUSE)
    times = []
    for _ in range(readings):
        begun = time.perf_counter()
        numbers.sum()
        times.append(time.perf_counter() - begun)
    time.sleep(PAUSE)
    return numbers.nbytes / statistics.median(times)


if __name__ == "__main__":
    main()
