"""What the three training scripts share: arguments, seeding, the training loop, and saving."""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

MODELS = Path(__file__).resolve().parent / "models"
MAX_FOLDER_BYTES = 1_000_000
IGNORED_LABEL = -100

Batch = Mapping[str, torch.Tensor]


def parse_arguments(description: str | None, folder: str) -> argparse.Namespace:
    """Read ``--out`` and ``--minutes``; `folder` is the default name under ``examples/models``."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=MODELS / folder, help="where the checkpoint goes")
    parser.add_argument("--minutes", type=float, default=2.5, help="stop training after this much CPU time")
    return parser.parse_args()


def set_seed(seed: int) -> None:
    """Fix everything that could make two runs on one machine differ."""
    random.seed(seed)
    torch.manual_seed(seed)
    # The order in which partial sums are added depends on the thread count. One thread is fast enough for models
    # this small, and on a busy machine two of them mostly wait for each other.
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    # Filling fresh memory only helps to find reads of it, and costs a tenth of the training time.
    torch.utils.deterministic.fill_uninitialized_memory = False


def mask_padding(labels: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
    """Return `labels` with padding set to the value that the loss ignores.

    The mask decides, not the token id: a tokenizer may use one id for padding and for end of text.
    """
    return labels.masked_fill(attention_mask == 0, IGNORED_LABEL)


def _rate(step: int, steps: int, peak: float) -> float:
    """Learning rate at `step`: a short linear warm-up, then half a cosine down to nearly zero."""
    warm_up = max(1, steps // 20)
    if step < warm_up:
        return peak * (step + 1) / warm_up
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / (steps - warm_up))))


def train(model: PreTrainedModel, batches: Iterator[Batch], *, steps: int, peak: float, minutes: float) -> None:
    """Train `model` for `steps` batches, or until `minutes` are used up.

    A run is repeatable only if it finishes its steps, so the limit is a safety net and says when it acts. It counts
    CPU time, not the clock: other work on the machine must not change the result.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak, betas=(0.9, 0.98), weight_decay=0.01)
    started, cpu_started = time.monotonic(), time.process_time()
    model.train()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _rate(step, steps, peak)
        loss = model(**next(batches)).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        used = time.process_time() - cpu_started
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step:5d}  loss {loss.item():.4f}  {used:.0f} s", flush=True)
        if used > minutes * 60:
            print(f"stopped at step {step} of {steps}: --minutes {minutes} is used up; this run is not repeatable")
            break
    model.eval()
    cpu, clock = time.process_time() - cpu_started, time.monotonic() - started
    print(f"trained in {cpu:.0f} s of CPU time, {clock:.0f} s by the clock")


def accuracy(correct: Callable[[list[Any]], list[bool]], samples: list[Any], batch: int = 100) -> float:
    """Share of `samples` that `correct` accepts, asked in batches so that padding is exercised."""
    hits = 0
    for start in range(0, len(samples), batch):
        hits += sum(correct(samples[start : start + batch]))
    return hits / len(samples)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the checkpoint into `out` and check that it is small, in safetensors, and free of pickles."""
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    _name_portable_tokenizer_class(out / "tokenizer_config.json")
    allowed = {".json", ".safetensors"}
    strangers = [path.name for path in out.iterdir() if path.suffix not in allowed]
    if strangers:
        raise SystemExit(f"{out} holds files that do not belong in a checkpoint: {strangers}")
    size = sum(path.stat().st_size for path in out.iterdir())
    if size >= MAX_FOLDER_BYTES:
        raise SystemExit(f"{out} holds {size} bytes; the limit is {MAX_FOLDER_BYTES}")
    print(f"saved {model.num_parameters()} parameters, {size} bytes")


def _name_portable_tokenizer_class(path: Path) -> None:
    """Name the tokenizer class that transformers 4 and 5 both know; version 5 writes one only it knows."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
