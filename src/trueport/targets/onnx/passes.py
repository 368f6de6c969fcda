"""What torch.onnx does to a program before it converts it, in a fraction of the time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from trueport.errors import CaptureError
from trueport.patches.context import applied
from trueport.patches.patch import Patch
from trueport.targets.onnx import decompose, promote

HOME = "torch.onnx._internal.exporter._fx_passes"
SYMPTOM = "the program is run again under fake tensors, where its graph tells the same"


def _pass(name: str, ours: Any) -> Patch:
    """Ours is given torch's own first, then what that is called with."""
    return Patch(f"{HOME}.{name}", SYMPTOM, f"{HOME} of torch 2.13", partial(partial, ours), lambda: [])


PASSES = (
    _pass("decompose_with_registry", decompose.decomposed),
    _pass("insert_type_promotion_nodes", promote.promoted),
)


def spared_passes() -> AbstractContextManager[None]:
    """Within, torch.onnx.export takes these passes; its own where torch has moved them."""
    return applied([patch for patch in PASSES if _is_there(patch)])


def _is_there(patch: Patch) -> bool:
    try:
        patch.resolve()
    except CaptureError:
        return False
    return True
