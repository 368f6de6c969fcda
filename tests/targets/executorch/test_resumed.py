"""Programs whose export was interrupted, and went on."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import transformers

import trueport
from tests.resume.test_resumed import Phases
from tests.targets.executorch.conftest import BATCH, LENGTH
from trueport.errors import ArtifactError

PROGRAM = "executorch/model.pte"


class Full(Phases):
    """The disk is full as soon as the program is written, which is read before it goes."""

    def __init__(self, place: Path) -> None:
        super().__init__("assets", OSError(28, "full"))
        self.place, self.program = place, b""

    def __call__(self, phase: str) -> None:
        if phase == self.until:
            (found,) = self.place.glob(f".out.trueport-*/{PROGRAM}")
            self.program = found.read_bytes()
        super().__call__(phase)


@pytest.mark.slow
def test_no_method_is_lowered_twice_and_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache, checkpoint = tmp_path / "cache", tmp_path / "checkpoint"
    monkeypatch.setenv("TRUEPORT_CACHE", str(cache))
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 5000}
    config = transformers.T5Config(**sizes, decoder_start_token_id=0)
    transformers.T5ForConditionalGeneration(config).save_pretrained(checkpoint)
    weights = checkpoint / "model.safetensors"

    def run(phases: Phases, **options: Any) -> list[str]:
        trueport.export(
            checkpoint, tmp_path / "out", to="executorch", tokenizer=None, proof=False, resume=True, progress=phases,
            max_batch=BATCH, max_length=LENGTH, **options,
        )  # fmt: skip
        return phases.seen

    full = Full(tmp_path)
    with pytest.raises(ArtifactError, match="No space left") as caught:
        run(full)
    assert {"lower encoder", "lower decoder"} <= set(full.seen)
    assert caught.value.kept == "Finished, and kept for the same command: encoder and decoder."  # type: ignore[attr-defined]
    kept = list(cache.iterdir())
    assert len(kept) == 2 and all(path.stat().st_size < weights.stat().st_size / 2 for path in kept)
    with pytest.raises(KeyboardInterrupt):  # captured anew: for other kernels
        run(Phases("capture encoder"), backend="portable")
    content, stat = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(KeyboardInterrupt):  # and for other weights
        run(Phases("capture encoder"))
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    taken = [f"capture {name}: taken from the interrupted export" for name in ("encoder", "decoder")]
    assert run(Phases()) == ["load", *taken, "weights", "assets", "hash"]
    assert os.listdir(cache) == []
    assert (tmp_path / "out" / PROGRAM).read_bytes() == full.program
