"""Trueport's exports of large shapes: peak memory by phase, of it what is no page of a file, and seconds.

``python -m benchmarks.peaks [--shapes llama-1b,llama-70b] [--load]`` makes for each shape a checkpoint of sparse files, all
zeros, which takes no room on the disk, exports it without a proof in a fresh process, and prints one line. ``--load``
opens what was exported too.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks.checkpoints import make

GB = 1e9


SECONDS = 0.01
"""Between two looks at the anonymous memory, of which the kernel keeps no mark."""


class Peaks:
    """The most memory that this process had in each phase: the kernel's mark is set back where one begins.

    Attributes:
        phases: peak and anonymous peak in GB, and seconds, by name.
    """

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self.name, self.since, self.anonymous = "import", time.perf_counter(), 0.0
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while True:
            self.anonymous = max(self.anonymous, anonymous())
            time.sleep(SECONDS)

    def __call__(self, phase: str) -> None:
        """A phase ends, the next begins."""
        now = time.perf_counter()
        peak, most, seconds = self.phases.get(self.name, [0.0, 0.0, 0.0])
        most = max(most, self.anonymous, anonymous())
        self.phases[self.name] = [max(peak, _high_water()), most, seconds + now - self.since]
        self.name, self.since, self.anonymous = phase, now, 0.0
        Path("/proc/self/clear_refs").write_text("5")


def _high_water() -> float:
    """GB of resident memory at most since the mark was set back."""
    return _status("VmHWM")


def _status(field: str) -> float:
    """GB, by the kernel's name."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / GB
    return 0.0


def export(source: str, out: str, weights: str, dtype: str | None, to: str) -> dict[str, Any]:
    """One export without a proof, in this process."""
    peaks = Peaks()
    import torch
    import transformers  # noqa: F401

    import trueport

    torch.set_num_threads(2)
    peaks("export")
    start, cpu = time.perf_counter(), time.process_time()
    trueport.export(source, out, to=to, weights=weights, dtype=dtype, tokenizer=None, proof=False, progress=peaks)
    peaks("done")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - cpu,
        "peak_gb": max(peak for peak, _, _ in peaks.phases.values()),
        "peak_anonymous_gb": max(most for _, most, _ in peaks.phases.values()),
        "phases": peaks.phases,
    }


def load(folder: str, memory: str) -> dict[str, Any]:
    """Seconds and anonymous memory of opening an artefact and of three tokens, in this process."""
    import torch

    import trueport
    import trueport.runtime.loading

    torch.set_num_threads(2)
    before, start = anonymous(), time.perf_counter()
    model = trueport.load(folder, memory=memory, threads=2)
    opened, taken = time.perf_counter() - start, anonymous() - before
    start = time.perf_counter()
    model.generate(torch.tensor([[5, 6, 7]]), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    return {
        "open_seconds": opened,
        "anonymous_gb": taken,
        "tokens_seconds": time.perf_counter() - start,
        "after_gb": anonymous() - before,
        "mapped_gb": _status("RssFile"),
    }


def anonymous() -> float:
    """GB of this process in memory that are no pages of files."""
    return _status("RssAnon")


def main() -> int:
    """Measure the shapes that were asked for; one line for each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peaks", description=__doc__)
    parser.add_argument("--shapes", default="llama-1b,llama-7b,llama-70b,qwen3-8b,mixtral-8x7b-4-layers,t5-11b")
    parser.add_argument("--weights", default="link", help="auto, link or copy; only link takes no room")
    parser.add_argument("--to", default="onnx", help="the target")
    parser.add_argument("--dtype", help="of the export; float32 by default")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    parser.add_argument("--load", action="store_true", help="open what was exported as well, mapped and fast")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--loader", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker or given.loader:
        with redirect_stdout(sys.stderr):
            result = load(*given.loader) if given.loader else export(
                *given.worker, given.weights, given.dtype, given.to
            )  # fmt: skip
        print(json.dumps(result))
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        for name in given.shapes.split(","):
            print(line(name, Path(place), given.weights, given.dtype, given.to), flush=True)
            for memory in ("map", "fast") if given.load else ():
                print(f"  {memory}: {loaded(Path(place) / f'{name}.out', memory)}", flush=True)
            for folder in (name, f"{name}.out"):
                shutil.rmtree(Path(place) / folder, ignore_errors=True)
    return 0


def loaded(folder: Path, memory: str) -> str:
    """How an artefact opens, in words."""
    command = [sys.executable, "-m", "benchmarks.peaks", "--loader", str(folder), memory]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"failed: {done.stderr.strip().splitlines()[-1][:300]}"
    found = json.loads(done.stdout.strip().splitlines()[-1])
    return (
        f"open {found['open_seconds']:.2f} s, {found['anonymous_gb']:.2f} GB anonymous; three tokens "
        f"{found['tokens_seconds']:.2f} s, then {found['after_gb']:.2f} GB anonymous, {found['mapped_gb']:.2f} GB mapped"
    )


def line(name: str, place: Path, weights: str, dtype: str | None, to: str) -> str:
    """One shape, measured, in words."""
    # Of equal tensors ExecuTorch writes one.
    size = make(name, place / name, values="executorch" in to)
    command = [sys.executable, "-m", "benchmarks.peaks", "--weights", weights, "--to", to, "--worker"]
    command += [str(place / name), str(place / f"{name}.out")] + (["--dtype", dtype] if dtype else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    written = sum(p.stat().st_blocks * 512 for p in (place / f"{name}.out").rglob("*") if p.is_file())
    if done.returncode:
        return f"{name}: {size / GB:.1f} GB of weights: failed: {done.stderr.strip().splitlines()[-1][:300]}"
    found = json.loads(done.stdout.strip().splitlines()[-1])
    phases = ", ".join(
        f"{phase} {peak:.2f} GB ({most:.2f}) {seconds:.1f} s"
        for phase, (peak, most, seconds) in found["phases"].items()
    )
    return (
        f"{name}: {size / GB:.1f} GB of weights: peak {found['peak_gb']:.2f} GB "
        f"({found['peak_anonymous_gb']:.2f} anonymous), {found['seconds']:.1f} s "
        f"({found['cpu_seconds']:.1f} s of CPU), {written / GB:.2f} GB on disk. {phases}"
    )


if __name__ == "__main__":
    sys.exit(main())
