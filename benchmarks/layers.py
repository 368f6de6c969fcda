"""Seconds of an export against layers, stamped and plain.

``python -m benchmarks.layers [--layers 12,24,48,80,96] [--shape llama|t5] [--plain]`` writes for each number of layers a
checkpoint of tiny width, exports it without a proof in a fresh process, each layer traced once or one for all, and prints
one line. What counts is what grows with the layers: the width hardly does. With ``--plain`` every layer is traced too, and
the two folders are compared, byte by byte.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any


def make(shape: str, layers: int, folder: Path) -> None:
    """Write a checkpoint of tiny width."""
    import torch
    import transformers

    torch.manual_seed(0)
    if shape == "llama":
        config = transformers.LlamaConfig(
            vocab_size=320, hidden_size=64, intermediate_size=160, num_hidden_layers=layers, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0,
        )  # fmt: skip
        model: Any = transformers.LlamaForCausalLM(config)
    else:
        config = transformers.T5Config(
            vocab_size=320, d_model=64, d_kv=16, d_ff=128, num_layers=layers, num_heads=4, decoder_start_token_id=0
        )
        model = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)


def export(source: str, out: str, stamp: bool) -> dict[str, Any]:
    """One export without a proof, in this process; the clock starts after the imports."""
    import torch

    import trueport
    import trueport.graphs.stamping.shorten
    import trueport.pipeline
    import trueport.source
    import trueport.targets.onnx.lower

    torch.set_num_threads(1)
    phases: list[tuple[str, float]] = []
    start, cpu = time.perf_counter(), time.process_time()
    trueport.export(
        source, out, tokenizer=None, proof=False, stamp=stamp,
        progress=lambda phase: phases.append((phase, time.perf_counter())),
    )  # fmt: skip
    end = time.perf_counter()
    stops = [*(moment for _, moment in phases[1:]), end]
    return {
        "seconds": end - start,
        "cpu_seconds": time.process_time() - cpu,
        "phases": {name: stop - begin for (name, begin), stop in zip(phases, stops, strict=True)},
    }


def measured(source: Path, out: Path, stamp: bool) -> dict[str, Any]:
    """The same in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.layers", "--worker", str(source), str(out), str(int(stamp))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{source.name} failed: {done.stderr.strip().splitlines()[-1][:300]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def main() -> int:
    """Measure; one line for each number of layers; 1 where the two ways gave different files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.layers", description=__doc__)
    parser.add_argument("--layers", default="12,24,48,80,96")
    parser.add_argument("--shape", choices=("llama", "t5"), default="llama")
    parser.add_argument("--plain", action="store_true", help="the plain way too, and whether the files are the same")
    parser.add_argument("--rounds", type=int, default=1, help="of which the fastest counts")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        with redirect_stdout(sys.stderr):
            result = export(given.worker[0], given.worker[1], given.worker[2] == "1")
        print(json.dumps(result))
        return 0
    first: dict[bool, float] = {}
    different = False
    for layers in (int(count) for count in given.layers.split(",")):
        with tempfile.TemporaryDirectory() as place:
            source = Path(place) / f"{given.shape}-{layers}"
            make(given.shape, layers, source)
            words = []
            for stamp in (True, False) if given.plain else (True,):
                runs = [measured(source, Path(place) / f"{stamp}-{i}", stamp) for i in range(given.rounds)]
                best = min(runs, key=lambda run: run["seconds"])
                ratio = best["seconds"] / first.setdefault(stamp, best["seconds"])
                phases = ", ".join(
                    f"{name} {seconds:.2f}" for name, seconds in best["phases"].items() if seconds > 0.05
                )
                words.append(
                    f"{'stamped' if stamp else 'plain'} {best['seconds']:.2f} s ({best['cpu_seconds']:.2f} s of CPU, "
                    f"{ratio:.2f} of the first; {phases})"
                )
            if given.plain:
                same = _files(Path(place) / "True-0") == _files(Path(place) / "False-0")
                different |= not same
                words.append("the same files" if same else "DIFFERENT FILES")
            print(f"{given.shape}, {layers} layers: {'; '.join(words)}", flush=True)
    return int(different)


def _files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


if __name__ == "__main__":
    sys.exit(main())
