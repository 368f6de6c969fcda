"""A proof of a large shape in bounded memory: peak memory, all and anonymous, and seconds by phase.

``python -m benchmarks.proven [--dtype bfloat16] [--memory 4GB] [--load]`` writes a checkpoint with the sizes of
Llama-3.2-1B and random weights that are scaled so that mistakes show, exports it with linked weights and proves it under
``--proof-memory``, in a fresh process. ``--load`` opens what was exported too, mapped and fast.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from benchmarks import checkpoints, peaks

SHAPE = "llama-3.2-1b"


def export(source: str, out: str, dtype: str | None, memory: str | None) -> dict[str, Any]:
    """One export with its proof, in this process."""
    sampled = peaks.Peaks()
    import torch
    import transformers  # noqa: F401

    import trueport

    torch.set_num_threads(2)
    artifact = trueport.export(
        source, out, weights="link", dtype=dtype, tokenizer=None, proof_memory=memory, allow_unproven=True,
        progress=sampled,
    )  # fmt: skip
    sampled("done")
    assert artifact.proof is not None
    return {"verdict": artifact.verdict, "notes": artifact.proof["notes"], "phases": sampled.phases}


def main() -> int:
    """Measure, and print one line for each phase."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.proven", description=__doc__)
    parser.add_argument("--shape", default=SHAPE, choices=tuple(checkpoints.SHAPES))
    parser.add_argument("--checkpoint", default="float32", help="dtype of the checkpoint")
    parser.add_argument("--dtype", help="of the export; float32 by default")
    parser.add_argument("--memory", default="4GB", help="the proof's; 'all' for the default")
    parser.add_argument("--folder", type=Path, help="where the files go; a temporary folder by default")
    parser.add_argument("--load", action="store_true", help="open what was exported as well, mapped and fast")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    memory = None if given.memory == "all" else given.memory
    if given.worker:
        with redirect_stdout(sys.stderr):
            result = export(*given.worker, given.dtype, memory)
        print(json.dumps(result))
        return 0
    with tempfile.TemporaryDirectory(dir=given.folder) as place:
        source, out = Path(place) / given.shape, Path(place) / "out"
        size = checkpoints.make(given.shape, source, dtype=given.checkpoint, values=True)
        print(f"{given.shape}: {size / peaks.GB:.2f} GB of weights in {given.checkpoint}, proof memory {given.memory}")
        command = [sys.executable, "-m", "benchmarks.proven", "--memory", given.memory, "--worker"]
        command += [str(source), str(out)] + (["--dtype", given.dtype] if given.dtype else [])
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"failed: {done.stderr.strip().splitlines()[-1][:300]}")
            return 1
        _print(json.loads(done.stdout.strip().splitlines()[-1]))
        for way in ("map", "fast") if given.load else ():
            print(f"{way}: {peaks.loaded(out, way)}", flush=True)
    return 0


def _print(found: dict[str, Any]) -> None:
    phases = found["phases"]
    proofs = {name: entry for name, entry in phases.items() if name.startswith("prove")}
    for name, (peak, anonymous, seconds) in phases.items():
        print(f"  {name}: {peak:.2f} GB, {anonymous:.2f} GB anonymous, {seconds:.1f} s")
    peak, anonymous, seconds = zip(*proofs.values(), strict=True)
    print(
        f"{found['verdict']}: the proof took {max(peak):.2f} GB at most, {max(anonymous):.2f} GB anonymous, "
        f"{sum(seconds):.0f} s; all {sum(spent for *_, spent in phases.values()):.0f} s"
    )
    for note in found["notes"]:
        print(f"  {note}.")


if __name__ == "__main__":
    sys.exit(main())
