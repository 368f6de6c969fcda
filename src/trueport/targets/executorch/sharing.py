"""Copies of programs that share their weights.

ExecuTorch hands a backend copies of what it is to lower, all of them at once, since a backend may change a graph
(exir/backend/backend_api.py): with each weight copied too, which nothing writes to, a model would lie in memory once more.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from executorch.exir.backend import backend_api


@contextmanager
def shared_weights() -> Iterator[None]:
    """While inside, what a backend is given has graphs of its own, and the weights of the original."""
    with mock.patch.object(backend_api, "copy", SimpleNamespace(deepcopy=deepcopy)):
        yield


def deepcopy(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """``copy.deepcopy``, but for the weights and constants of an exported program."""
    memo = {} if memo is None else memo
    if isinstance(value, torch.export.ExportedProgram):
        for tensor in (*value.state_dict.values(), *value.constants.values()):
            if isinstance(tensor, torch.Tensor):
                memo[id(tensor)] = tensor
    return copy.deepcopy(value, memo)
