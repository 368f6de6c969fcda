"""Processes that are forked from one which has imported what this one has: a start takes a tenth of a second, not four."""

from __future__ import annotations

import functools
import multiprocessing
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.context import ForkServerContext
from pathlib import Path

PACKAGES = ("torch", "transformers", "tokenizers", "onnx", "onnxruntime", "onnxscript", "onnx_ir", "trueport")
ENVIRONMENT = {"COLUMNS": "100", "HF_HUB_OFFLINE": "1"}


@functools.cache
def context() -> ForkServerContext:
    """Where such processes come from; it imports once for this worker."""
    made = multiprocessing.get_context("forkserver")
    made.set_forkserver_preload([name for name in sys.modules if name.partition(".")[0] in PACKAGES])
    return made


def trueport_command(*words: object, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """``trueport WORDS`` as ``subprocess.run`` gives it, with texts."""
    given = [str(word) for word in words]
    with tempfile.TemporaryDirectory() as place:
        paths = [Path(place) / name for name in ("stdout", "stderr")]
        process = context().Process(target=_command, args=(given, paths, {**ENVIRONMENT, **(env or {})}, os.getcwd()))
        process.start()
        process.join()
        assert process.exitcode is not None
        return subprocess.CompletedProcess(given, process.exitcode, *(path.read_text() for path in paths))


def _command(words: list[str], paths: list[Path], env: Mapping[str, str], folder: str) -> None:
    for descriptor, path in enumerate(paths, 1):
        with path.open("wb") as stream:
            os.dup2(stream.fileno(), descriptor)
    os.environ.update(env)
    os.chdir(folder)
    sys.argv = ["trueport", *words]
    from trueport.cli import main

    main()
