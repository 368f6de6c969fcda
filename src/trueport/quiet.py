"""What other libraries say while Trueport works: nothing, as what matters becomes an error of ours."""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stderr, redirect_stdout

LOGGERS = (
    "torch",
    "torchao",
    "torch.onnx",
    "torch.utils._pytree",
    "onnxscript",
    "onnx_ir",
    "huggingface_hub",
    "executorch",
)
"""Loggers of the libraries that work inside an export."""
_MUTING = threading.RLock()
"""Two threads that put back what they found would leave it leading nowhere."""
_CHANGING = threading.Lock()
_changed: dict[str, tuple[int, ExitStack]] = {}
"""What is changed for now: for how many, and what sets it back."""


def quiet() -> AbstractContextManager[None]:
    """No log lines, warnings or progress bars of torch, transformers and the hub."""
    return _together("quiet", _quiet)


def silent(stream: str) -> AbstractContextManager[None]:
    """Nothing that Python writes to ``stdout`` or ``stderr``."""
    redirect = {"stdout": redirect_stdout, "stderr": redirect_stderr}[stream]
    return _together(stream, lambda: redirect(io.StringIO()))


@contextmanager
def _together(key: str, change: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Within, the process is changed: the first to come changes it, the last to go sets it back.

    Where threads overlap, each would put back what it found, and leave the other's silence for good.
    """
    with _CHANGING:
        count, stack = _changed.get(key) or (0, ExitStack())
        if not count:
            stack.enter_context(change())
        _changed[key] = count + 1, stack
    try:
        yield
    finally:
        with _CHANGING:
            count, stack = _changed.pop(key)
            if count > 1:
                _changed[key] = count - 1, stack
            else:
                stack.close()


@contextmanager
def _quiet() -> Iterator[None]:
    levels = {name: logging.getLogger(name).level for name in LOGGERS}
    for name in LOGGERS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        # transformers imports torchao where it is installed, whose import alone logs.
        from huggingface_hub.utils import are_progress_bars_disabled
        from transformers.utils import logging as transformers_logging

        level = transformers_logging.get_verbosity()
        bars, hub_bars = transformers_logging.is_progress_bar_enabled(), not are_progress_bars_disabled()
        transformers_logging.set_verbosity(logging.CRITICAL)
        transformers_logging.disable_progress_bar()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            transformers_logging.set_verbosity(level)
            if bars and hub_bars:  # one switch of transformers moves both
                transformers_logging.enable_progress_bar()
    finally:
        for name, before in levels.items():
            logging.getLogger(name).setLevel(before)


@contextmanager
def mute_native() -> Iterator[None]:
    """No lines that native code writes past Python: file descriptor 2 itself leads nowhere. One thread after the other."""
    with _MUTING:
        yield from _muted()


def _muted() -> Iterator[None]:
    try:
        kept = os.dup(2)
    except OSError:  # closed, as of some services: nothing is told to anyone
        yield
        return
    if sys.stderr is not None:
        sys.stderr.flush()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
