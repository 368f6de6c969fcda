"""Runs of a graph in a process of its own.

Kernels of ONNX Runtime 1.31.1 that divide by a size end the whole process where it is 0 (SIGFPE, not an exception).
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

PATIENCE = 300
"""Seconds after which a process counts as one that does not end."""
Arrays = Mapping[str, np.ndarray]


def run_apart(path: Path, runs: Sequence[Arrays]) -> list[Arrays | None]:
    """Inputs by name to outputs by name, for each run; None where the runtime refuses it, or does not survive it."""
    if any(array.dtype.kind not in "fiub" for feeds in runs for array in feeds.values()):
        return [None] * len(runs)  # bfloat16 has no place in a .npz
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        for number, feeds in enumerate(runs):
            np.savez(folder / f"given{number}.npz", **dict(feeds))  # type: ignore[arg-type]
        begin = 0
        while begin < len(runs):
            _start(path, folder, begin, len(runs))
            # What has no result is where the process ended.
            begin = next((n for n in range(begin, len(runs)) if not _gives(folder, n).exists()), len(runs)) + 1
        return [_read(_gives(folder, number)) for number in range(len(runs))]


def _start(path: Path, folder: Path, begin: int, end: int) -> None:
    # By its path: importing trueport takes longer than the runs. -P: its folder holds modules with common names.
    command = [sys.executable, "-P", __file__, str(path), str(folder), str(begin), str(end)]
    try:
        subprocess.run(command, capture_output=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return


def _gives(folder: Path, number: int) -> Path:
    return folder / f"gives{number}.npz"


def _read(file: Path) -> Arrays | None:
    if not file.exists():
        return None
    with np.load(file) as arrays:
        return dict(arrays) or None


def _main(graph: str, place: str, begin: int, end: int) -> None:
    import onnxruntime

    folder = Path(place)
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for number in range(begin, end):
        with np.load(folder / f"given{number}.npz") as arrays:
            feeds = dict(arrays)
        try:
            results = dict(zip(names, session.run(None, feeds), strict=True))
        except Exception:  # the runtime's own exceptions have no common class
            results = {}
        np.savez(folder / "writing.npz", **results)
        (folder / "writing.npz").rename(_gives(folder, number))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
