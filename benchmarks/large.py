"""Exports of large shapes without their weights: peak memory by phase, and seconds.

``python -m benchmarks.large [--shapes llama-1b,llama-70b] [--load]`` makes for each shape a checkpoint of sparse files, all
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
import time
import zlib
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

GB = 1e9
SHARD = 10 * 2**30
"""Bytes of a shard, at most, where one tensor is not larger."""


def _llama(layers: int, hidden: int, heads: int, groups: int, inner: int, vocabulary: int = 32_000) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "intermediate_size": inner, "vocab_size": vocabulary, "max_position_embeddings": 4096,
    }  # fmt: skip


SHAPES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama-0.3b": ("LlamaForCausalLM", "LlamaConfig", _llama(16, 1024, 16, 8, 4096), "float32"),
    "llama-1b": ("LlamaForCausalLM", "LlamaConfig", _llama(22, 2048, 32, 4, 5632), "float32"),
    "llama-3.2-1b": (
        "LlamaForCausalLM", "LlamaConfig",
        _llama(16, 2048, 32, 8, 8192, 128_256) | {
            "tie_word_embeddings": True, "max_position_embeddings": 131_072, "head_dim": 64,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
        "bfloat16",
    ),
    "llama-7b": ("LlamaForCausalLM", "LlamaConfig", _llama(32, 4096, 32, 32, 11_008), "float16"),
    "llama-70b": ("LlamaForCausalLM", "LlamaConfig", _llama(80, 8192, 64, 8, 28_672), "float32"),
    "qwen3-8b": (
        "Qwen3ForCausalLM", "Qwen3Config", _llama(36, 4096, 32, 8, 12_288, 151_936) | {"head_dim": 128}, "bfloat16",
    ),
    "mixtral-8x7b-4-layers": (  # what is fused is written: 32 layers would fill a small disk
        "MixtralForCausalLM", "MixtralConfig",
        _llama(4, 4096, 32, 8, 14_336) | {"num_local_experts": 8, "num_experts_per_tok": 2}, "bfloat16",
    ),
    "t5-11b": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 32_128, "d_model": 1024, "d_kv": 128, "d_ff": 65_536, "num_layers": 24, "num_heads": 128}, "float32",
    ),
}  # fmt: skip
"""By name: class, config, its sizes, and the dtype of the checkpoint."""


def make(name: str, folder: Path, *, dtype: str | None = None, values: bool = False) -> int:
    """Write a checkpoint as the hub has it, with shards and an index; returns its bytes.

    Args:
        name: of the shape.
        folder: where to.
        dtype: of the checkpoint; the shape's own when None.
        values: write random weights; else the files are sparse, all zeros.
    """
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    kind, config_kind, sizes, own = SHAPES[name]
    dtype = dtype or own
    config = getattr(transformers, config_kind)(**sizes)
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    config.architectures, config.dtype = [kind], dtype
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    width = getattr(torch, dtype).itemsize
    tensors = revert_weight_conversion(model, {k: v for k, v in model.state_dict().items() if k not in tied})
    short = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    shards: list[dict[str, Any]] = [{}]
    filled = 0
    for key, tensor in tensors.items():
        count = tensor.numel() * width
        if filled and filled + count > SHARD:
            shards.append({})
            filled = 0
        shards[-1][key] = {"dtype": short, "shape": list(tensor.shape), "data_offsets": [filled, filled + count]}
        filled += count
    places, total = {}, 0
    for number, header in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(header, file)
        text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            end = max(entry["data_offsets"][1] for entry in header.values())
            for key, entry in header.items() if values else ():  # in the order of their offsets
                stream.write(_drawn(key, entry["shape"], getattr(torch, dtype)))
            stream.truncate(8 + len(text) + end)
            total += end
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return total


def _drawn(name: str, shape: list[int], dtype: Any) -> memoryview:
    """Random weights at a scale at which attention is peaked and a wrong mask or position shows; norms near 1."""
    import torch

    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    drawn = 1 + 0.1 * drawn if len(shape) == 1 else drawn * (1.5 / shape[-1] ** 0.5)
    return memoryview(drawn.to(dtype).reshape(-1).view(torch.uint8).numpy())


class Peaks:
    """The most memory that this process had in each phase: the kernel's mark is set back where one begins."""

    def __init__(self) -> None:
        self.phases: dict[str, list[float]] = {}
        self.name, self.since = "import", time.perf_counter()

    def __call__(self, phase: str) -> None:
        """A phase ends, the next begins."""
        now = time.perf_counter()
        peak, seconds = self.phases.get(self.name, [0.0, 0.0])
        self.phases[self.name] = [max(peak, _high_water()), seconds + now - self.since]
        self.name, self.since = phase, now
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
        "peak_gb": max(peak for peak, _ in peaks.phases.values()),
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
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
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
    command = [sys.executable, "-m", "benchmarks.large", "--loader", str(folder), memory]
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
    command = [sys.executable, "-m", "benchmarks.large", "--weights", weights, "--to", to, "--worker"]
    command += [str(place / name), str(place / f"{name}.out")] + (["--dtype", dtype] if dtype else [])
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    written = sum(p.stat().st_blocks * 512 for p in (place / f"{name}.out").rglob("*") if p.is_file())
    if done.returncode:
        return f"{name}: {size / GB:.1f} GB of weights: failed: {done.stderr.strip().splitlines()[-1][:300]}"
    found = json.loads(done.stdout.strip().splitlines()[-1])
    phases = ", ".join(f"{phase} {peak:.2f} GB {seconds:.1f} s" for phase, (peak, seconds) in found["phases"].items())
    return (
        f"{name}: {size / GB:.1f} GB of weights: peak {found['peak_gb']:.2f} GB, {found['seconds']:.1f} s "
        f"({found['cpu_seconds']:.1f} s of CPU), {written / GB:.2f} GB on disk. {phases}"
    )


if __name__ == "__main__":
    sys.exit(main())
