"""Peers in an environment of their own, with the versions that they need: each makes a graph here."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.measure import ROOT, TIMEOUT

VARIABLE = "TRUEPORT_PEERS"
"""Names the folder of the environments; without it they are where ``make peers`` puts them."""
PLACE = ROOT / ".peers"
OPTIMUM, GENAI, MOBIUS = "optimum-onnx", "onnxruntime-genai", "mobius-onnx"
COMMANDS = {
    OPTIMUM: (
        "-c",
        "import sys; from optimum.exporters.onnx import main_export; "
        "main_export(sys.argv[1], output=sys.argv[2], task=sys.argv[3], do_validation=False)",
        "{checkpoint}",
        "{folder}",
        "{task}",
    ),
    GENAI: (
        "-m", "onnxruntime_genai.models.builder", "-m", "{checkpoint}", "-o", "{folder}", "-p", "fp32", "-e", "cpu",
        "-c", "{folder}/cache",
    ),
    MOBIUS: ("-m", "mobius", "build", "--config", "{checkpoint}", "{folder}"),
}  # fmt: skip
"""What each environment's Python is told."""


class MissingError(Exception):
    """A peer that is not installed, or that failed; the message is the reason, in a few words."""


def python_of(peer: str) -> Path:
    """The interpreter of a peer's environment.

    Raises:
        MissingError: there is none.
    """
    python = Path(os.environ.get(VARIABLE) or PLACE) / peer / "bin" / "python"
    if not python.is_file():
        raise MissingError("not installed (make peers)")
    return python


def graphs(peer: str, checkpoint: Path, folder: Path, task: str = "text-generation-with-past") -> list[Path]:
    """The ``.onnx`` files that a peer makes of a checkpoint, or has made there; the task is in optimum's words.

    Raises:
        MissingError: there is no environment for it, or it failed.
    """
    python = python_of(peer)
    if paths := sorted(folder.rglob("*.onnx")):
        return paths
    command = [str(python), *(part.format(checkpoint=checkpoint, folder=folder, task=task) for part in COMMANDS[peer])]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": ""}
    done = subprocess.run(command, env=quiet, capture_output=True, text=True, timeout=TIMEOUT)
    paths = sorted(folder.rglob("*.onnx"))
    if done.returncode or not paths:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit code {done.returncode}"]
        raise MissingError(f"failed: {lines[-1][:100]}")
    return paths
