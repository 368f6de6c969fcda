"""One measurement in one fresh process: ``python -m benchmarks.worker '{"task": ...}'`` prints one line of JSON."""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks import peer, shapes
from benchmarks.fusions import fused
from benchmarks.tables import FUSED_INT4, FUSED_INT8, INT4, INT8

MIB = 2**20
WARM_TOKENS = 4
"""Generated before the clock starts, so that allocators and thread pools are there."""


PLANNED = {"max_batch": 1, "max_length": 256}
"""Bounds of a program that generates from one prompt: the measured prompt and its new tokens fit."""


def main() -> int:
    """Run the task that the argument describes."""
    task = json.loads(sys.argv[1])
    with redirect_stdout(sys.stderr):
        result = {"export": export, "decode": decode}[task.pop("task")](**task)
    print(json.dumps(result))
    return 0


def export(contender: str, shape: str, quick: bool, folder: str) -> dict[str, Any]:
    """Seconds, CPU seconds and memory of one export; libraries are imported and the model is built before."""
    import torch

    torch.set_num_threads(os.cpu_count() or 1)
    model = shapes.build(shape, quick=quick)
    peer.warm()
    phases: list[tuple[str, float]] = []
    executorch = contender.endswith(".pte")
    if contender.startswith("transformers.exporters"):
        run: Callable[[], Any] = lambda: peer.export(model, shape, Path(folder), executorch=executorch)  # noqa: E731
    else:
        import trueport.pipeline  # noqa: F401
        from trueport import export as trueport_export

        fuses = contender in (FUSED_INT8, FUSED_INT4)
        plain = Path(folder + " unfused") if fuses else Path(folder)
        run = lambda: trueport_export(  # noqa: E731
            model,
            plain,
            tokenizer=None,
            proof=contender == "trueport with proof",
            **({"to": "executorch"} | PLANNED if executorch else {}),
            **({"quantize": contender.split(", ")[1]} if fuses or contender in (INT8, INT4) else {}),
            allow_unproven=True,
            force=True,
            progress=lambda phase: phases.append((phase, time.perf_counter())),
        )
    result = _measured(run)
    if contender in (FUSED_INT8, FUSED_INT4):
        from trueport.graphs.fusions import FUSIONS

        fused(Path(folder + " unfused"), Path(folder), FUSIONS)
    end = phases[0][1] + result["seconds"] if phases else 0.0
    result["phases"] = _durations(phases, end)
    result["bytes"] = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    result["weights"] = sum(tensor.nbytes for tensor in model.parameters())
    return result


def _durations(phases: list[tuple[str, float]], end: float) -> dict[str, float]:
    """Seconds by phase, from the moments at which each began."""
    stops = [*(moment for _, moment in phases[1:]), end][: len(phases)]
    return {name: max(stop - start, 0.0) for (name, start), stop in zip(phases, stops, strict=True)}


def _measured(run: Callable[[], Any]) -> dict[str, Any]:
    before = resource.getrusage(resource.RUSAGE_SELF)
    resident = _resident()
    start = time.perf_counter()
    run()
    seconds = time.perf_counter() - start
    after = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "cpu_seconds": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "peak_mib": after.ru_maxrss * 1024 / MIB,
        "extra_mib": max(after.ru_maxrss * 1024 - resident, 0) / MIB,
    }


def _resident() -> int:
    """Bytes of this process in memory now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def decode(
    contender: str, shape: str, quick: bool, folder: str, threads: int, length: int, count: int
) -> dict[str, Any]:
    """Tokens per second of greedy generation, batch 1; loading and a warm-up come before."""
    import torch

    torch.set_num_threads(threads)
    peer.warm()
    feeds = shapes.prompt(length, quick=quick)
    start = time.perf_counter()
    generate = _generator(contender, shape, quick, folder, threads)
    loaded = time.perf_counter() - start
    generate(feeds, WARM_TOKENS)
    first = _measured(lambda: generate(feeds, 1))["seconds"]
    tokens: list[int] = []
    whole = _measured(lambda: tokens.extend(generate(feeds, count)))
    return whole | {
        "load_seconds": loaded,
        "first_token_seconds": first,
        "tokens_per_second": count / whole["seconds"],
        "later_tokens_per_second": (count - 1) / max(whole["seconds"] - first, 1e-9),
        "tokens": tokens,
    }


def _generator(contender: str, shape: str, quick: bool, folder: str, threads: int) -> Callable[[Any, int], list[int]]:
    """Feeds and a count to the new tokens."""
    if contender.startswith("transformers.exporters"):
        greedy = peer.Greedy(Path(folder), shape, threads, executorch=contender.endswith(".pte"))
        return lambda feeds, count: greedy.generate(**feeds, count=count)
    if contender == "eager":
        model: Any = shapes.build(shape, quick=quick)
    else:
        import trueport

        model = trueport.load(folder, threads=threads)

    def generate(feeds: Any, count: int) -> list[int]:
        import torch

        with torch.no_grad():
            ids = model.generate(**feeds, max_new_tokens=count, do_sample=False)
        return ids[0, -count:].tolist()

    return generate


if __name__ == "__main__":
    sys.exit(main())
