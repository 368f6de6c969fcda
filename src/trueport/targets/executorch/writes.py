"""Which writes of an ExecuTorch program are done in place: those to the program's own buffers, the caches."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch

from trueport.patches.context import applied_where_there
from trueport.patches.patch import Patch


def _of_buffers(original: Callable[..., bool]) -> Callable[..., bool]:
    def is_safe(
        node: torch.fx.Node, consuming: torch.fx.Node, later: Any, inputs: set[torch.fx.Node], mutable: Any
    ) -> bool:
        written = node
        while written.target is consuming.target:  # a write to what another write leaves
            written = written.args[0]  # type: ignore[assignment]
        return written in inputs and original(node, consuming, later, inputs, mutable)

    return is_safe


IN_BUFFERS = Patch(
    "executorch.exir.passes.reinplace._is_safe_to_reinplace",
    "the bytes of a new tensor that is written to in place are planned for others while it is still read, and the kernel "
    "in place knows no negative index and adds nothing up",
    "ExecuTorch 1.4's exir/passes/reinplace.py and op_index_put.cpp",
    _of_buffers,
    lambda: [],
)


def written_in_buffers() -> AbstractContextManager[None]:
    """Within, an index_put is done in place where it writes to a buffer, as a cache does, and nowhere else."""
    return applied_where_there([IN_BUFFERS])
