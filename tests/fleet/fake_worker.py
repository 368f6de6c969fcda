"""A worker whose export takes milliseconds; all else is the real one's. What it does, ``behave.json`` in the model says.

``do`` is one of the functions below; with ``times`` only the first so many calls do it, the others are fine. Every call
leaves a line in ``calls/NAME`` beside the models.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests import samples
from tests.fleet.quota import QuotaFileSystem
from trueport import artifact
from trueport.artifact import Artifact, list_files, staged, write_json
from trueport.errors import ProofError, SourceError
from trueport.fleet import worker
from trueport.fleet.storage import Store


def export(model: str, folder: Path, *, progress: Any, **options: Any) -> Artifact:
    """What ``trueport.export`` does, without a model."""
    place = Path(model)
    behave = json.loads((place / "behave.json").read_text())
    calls = place.parent.parent / "calls" / place.name
    calls.parent.mkdir(exist_ok=True)
    with calls.open("a") as stream:
        stream.write(f"{os.getpid()}\n")
    progress("capture model")
    if len(calls.read_text().split()) <= behave.get("times", 1000):
        globals()[behave.get("do", "fine")](place)
    content = None if options.get("proof") is False else samples.proof(reference=False)
    with staged(folder) as staging:
        (staging / "onnx").mkdir()
        (staging / "onnx" / "model.onnx").write_bytes(bytes(behave.get("size", 1000)))
        manifest = samples.decoder(verdict="unproven" if content is None else "proven")
        if content is not None:
            write_json(staging / "proof.json", content)
        manifest["files"] = list_files(staging)
        write_json(staging / "trueport.json", manifest)
    return Artifact(folder, manifest, content)


def fine(place: Path) -> None:
    print("what a library prints goes to the log, not among the results")


def die(place: Path) -> None:
    tempfile.mkdtemp(prefix="left-by-the-dead-")
    os.kill(os.getpid(), signal.SIGKILL)


def leave(place: Path) -> None:
    print("Fatal: the library gave up", file=sys.stderr, flush=True)
    os._exit(3)


def hang(place: Path) -> None:
    time.sleep(600)


def eat(place: Path) -> None:
    held = []
    while True:
        held.append(b"x" * 20_000_000)
        time.sleep(0.01)


def wait(place: Path) -> None:
    """Until the test says go."""
    while not (place.parent.parent / "go").exists():
        time.sleep(0.02)


def linger(place: Path) -> None:
    time.sleep(1.5)


def fail(place: Path) -> None:
    content = samples.proof(verdict="failed", reference=False, clauses=samples.failing())
    error = ProofError("Not proven", "")
    error.proof = SimpleNamespace(to_json=lambda: content)  # type: ignore[attr-defined]
    raise error


def refuse(place: Path) -> None:
    raise SourceError(f"{place} is no model", "Give another.")


def stumble(place: Path) -> None:
    raise RuntimeError("a fault of a library's")


def fill(place: Path) -> None:
    """From here on no file may grow past a hundred bytes: what a full disk says, without one."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))


def change(place: Path) -> None:
    (place / "weights").write_text("others")


def dawdle(place: Path) -> None:
    """It goes on uploading until somebody ends it."""
    put = QuotaFileSystem.put_file

    def put_slowly(*args: Any, **options: Any) -> None:
        put(*args, **options)
        (place.parent.parent / "uploading").touch()
        time.sleep(600)

    QuotaFileSystem.put_file = put_slowly  # type: ignore[method-assign]


def die_after(place: Path) -> None:
    """When the artefact is in place, and before anybody is told."""
    publish = Store.publish

    def publish_and_die(*args: Any, **options: Any) -> int:
        publish(*args, **options)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    Store.publish = publish_and_die  # type: ignore[method-assign]


def die_within(place: Path) -> None:
    """When everything is written, and before it is in place."""
    write, put = Store.write, artifact.put_in_place

    def write_or_die(self: Store, path: str, content: Any) -> None:
        if path.endswith("/trueport.json"):
            os.kill(os.getpid(), signal.SIGKILL)
        write(self, path, content)

    def put_or_die(staging: Path, out: Path) -> None:
        if out.name == place.name:
            os.kill(os.getpid(), signal.SIGKILL)
        put(staging, out)

    Store.write = write_or_die  # type: ignore[method-assign]
    artifact.put_in_place = put_or_die


if __name__ == "__main__":
    worker.main(export)
