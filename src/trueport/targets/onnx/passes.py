"""What torch.onnx does to a program before it converts it, in a fraction of the time."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from trueport.targets.onnx import decompose, promote

OURS: dict[str, Any] = {
    "decompose_with_registry": decompose.decomposed,
    "insert_type_promotion_nodes": promote.promoted,
}
"""By the name of torch's own function; ours is given that one first, then what it is called with."""


@contextmanager
def spared_passes() -> Iterator[None]:
    """Within, torch.onnx.export does not run the program again under fake tensors where the graph tells the same.

    Where torch has no such functions, it takes its own way.
    """
    try:
        from torch.onnx._internal.exporter import _fx_passes as passes
    except ImportError:
        yield
        return
    before: dict[str, Any] = {name: getattr(passes, name) for name in OURS if hasattr(passes, name)}
    for name, plainly in before.items():
        setattr(passes, name, functools.partial(OURS[name], plainly))
    try:
        yield
    finally:
        for name, plainly in before.items():
            setattr(passes, name, plainly)
