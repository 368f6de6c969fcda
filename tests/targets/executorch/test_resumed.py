"""Programs whose export was interrupted, and went on."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import trueport
from tests.conftest import EXAMPLES, Exported
from tests.resume.test_resumed import Phases
from tests.targets.executorch.conftest import BATCH, LENGTH
from trueport.artifact import MANIFEST
from trueport.errors import ArtifactError


@pytest.mark.slow
def test_no_method_is_lowered_twice_and_the_bytes_are_the_same(
    program: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted behind the encoder, and again, the disk full, behind the decoder."""
    cache, checkpoint = tmp_path / "cache", tmp_path / "t5-dates"
    monkeypatch.setenv("TRUEPORT_CACHE", str(cache))
    shutil.copytree(EXAMPLES / "t5-dates", checkpoint)
    plain = program("t5-dates")

    def run(phases: Phases, **options: Any) -> list[str]:
        trueport.export(
            checkpoint, tmp_path / "out", to="executorch", proof=False, resume=True, progress=phases,
            max_batch=BATCH, max_length=LENGTH, **options,
        )  # fmt: skip
        return phases.seen

    first, full = Phases("capture decoder"), Phases("assets", OSError(28, "full"))
    with pytest.raises(KeyboardInterrupt) as caught:
        run(first)
    assert caught.value.kept == "Finished, and kept for the same command: encoder."  # type: ignore[attr-defined]
    (kept,) = cache.iterdir()
    assert kept.stat().st_size < 100_000 < (checkpoint / "model.safetensors").stat().st_size
    with pytest.raises(KeyboardInterrupt):  # the encoder would be captured anew: a program of another size
        trueport.export(checkpoint, tmp_path / "out", to="executorch", resume=True, progress=Phases("capture encoder"))
    weights = checkpoint / "model.safetensors"
    content, stat = weights.read_bytes(), weights.stat()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(KeyboardInterrupt):  # nor is it taken for other weights
        run(Phases("capture encoder"))
    weights.write_bytes(content)
    os.utime(weights, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(ArtifactError, match="No space left"):
        run(full)
    assert "capture encoder" not in full.seen and "lower decoder" in full.seen
    taken = [f"capture {name}: taken from the interrupted export" for name in ("encoder", "decoder")]
    assert run(Phases()) == ["load", *taken, "weights", "assets", "hash"]
    assert os.listdir(cache) == []
    resumed, whole = (json.loads((folder / MANIFEST).read_text()) for folder in (tmp_path / "out", plain))
    others = {name for name, entry in whole["files"].items() if resumed["files"].get(name) != entry}
    assert others == {"README.md", "proof.json", "report.html"}
    assert resumed["components"] == whole["components"] and resumed["source"] == whole["source"]
