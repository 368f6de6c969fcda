"""``python -m benchmarks.context [--quick]``: milliseconds of a decode step against the length of the context.

One Llama with a key head for each query head and one with a third as many, exported, optimised, and optimised with its
caches in place, beside PyTorch with a static cache. Each contender prefills in chunks and steps at every length; the
contenders take turns at each length, and the smaller median of two turns counts.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import measure

THREADS, CHUNK, STEPS, TURNS = 2, 128, 8, 2
LENGTHS = (128, 512, 1024, 2048, 4096)
PLAIN, FUSED, IN_PLACE, STATIC = "exported", "--optimize cpu", "--optimize cpu --caches in-place", "torch, static cache"
Advance = Callable[[int], None]
"""Goes on by so many tokens."""


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny shape and short contexts: does everything run?")
    quick = parser.parse_args().quick
    about = measure.machine()
    with tempfile.TemporaryDirectory(prefix="trueport-context-") as place:
        for key_heads in (4,) if quick else (12, 4):
            print(_table(key_heads, Path(place) / str(key_heads), quick), flush=True)
    print(f"{about['cores']} cores, {THREADS} threads, load {about['load_at_start']} at the start; {about['versions']}")


def _table(key_heads: int, place: Path, quick: bool) -> str:
    import torch

    torch.set_num_threads(THREADS)
    model = _model(key_heads, quick)
    folders = _folders(model, place)
    lengths = LENGTHS[:2] if quick else LENGTHS
    contenders: dict[str, Advance] = {name: _session(folder) for name, folder in folders.items()}
    contenders[STATIC] = _static(model, max(lengths) + STEPS * TURNS * len(lengths))
    found: dict[str, list[float]] = {name: [] for name in contenders}
    reached = 0
    for length in lengths:
        for advance in contenders.values():
            for start in range(reached, length, CHUNK):
                advance(min(CHUNK, length - start))
        for name, median in _turns(contenders).items():
            found[name].append(median)
        reached = length + STEPS * TURNS
    lines = [f"12 query heads over {key_heads} | right under left padding | " + " | ".join(map(str, lengths))]
    lines.append("|".join(["---", "---", *("--:" for _ in lengths)]))
    for name, medians in found.items():
        lines.append(f"{name} | {_verdict(folders.get(name))} | " + " | ".join(f"{value:.1f}" for value in medians))
    return "\n".join(f"| {line} |" for line in lines) + "\n"


def _turns(contenders: dict[str, Advance]) -> dict[str, float]:
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(TURNS):
        for name, advance in contenders.items():
            times = []
            for _ in range(STEPS):
                start = time.perf_counter()
                advance(1)
                times.append((time.perf_counter() - start) * 1e3)
            best[name] = min(best[name], statistics.median(times))
    return best


def _verdict(folder: Path | None) -> str:
    """What the folder's proof says; PyTorch is what it is held against."""
    from trueport.artifact import read_manifest

    if folder is None:
        return "the reference"
    return "yes" if read_manifest(folder)["proof"]["verdict"] == "proven" else "not proven"


def _model(key_heads: int, quick: bool) -> Any:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320 if quick else 8000, hidden_size=96 if quick else 768, num_hidden_layers=2 if quick else 12,
        num_attention_heads=12, num_key_value_heads=key_heads, intermediate_size=256 if quick else 2048,
        max_position_embeddings=8192,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def _folders(model: Any, place: Path) -> dict[str, Path]:
    import trueport

    folders = {name: place / str(index) for index, name in enumerate((PLAIN, FUSED, IN_PLACE))}
    trueport.export(model, folders[PLAIN], tokenizer=None)
    for name, caches in ((FUSED, "copied"), (IN_PLACE, "in-place")):
        shutil.copytree(folders[PLAIN], folders[name])
        print(trueport.optimize(folders[name], caches=caches, against=model).text().splitlines()[-1], flush=True)
    return folders


def _session(folder: Path) -> Advance:
    """The folder's session, from an empty cache on."""
    import torch

    import trueport

    session = trueport.load(folder, threads=THREADS).sessions["model"]
    state, reached = session.empty_state(1), 0

    def advance(count: int) -> None:
        nonlocal state, reached
        feeds = {
            "input_ids": torch.full((1, count), 5),
            "attention_mask": torch.ones((1, reached + count), dtype=torch.int64),
            "position_ids": torch.arange(reached, reached + count)[None],
        }
        _, state = session.advance(feeds, state)
        reached += count

    return advance


def _static(model: Any, capacity: int) -> Advance:
    """PyTorch with a cache of fixed size, written in place."""
    import torch
    from transformers import StaticCache

    cache, reached = StaticCache(config=model.config, max_cache_len=capacity), 0

    def advance(count: int) -> None:
        nonlocal reached
        places = torch.arange(reached, reached + count)
        with torch.no_grad():
            model(torch.full((1, count), 5), past_key_values=cache, position_ids=places[None], use_cache=True)
        reached += count

    return advance


if __name__ == "__main__":
    main()
