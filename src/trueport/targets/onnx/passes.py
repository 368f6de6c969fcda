"""What torch.onnx does before it converts a program, in a fraction of the time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

from trueport.patches.context import applied_where_there
from trueport.patches.patch import Patch
from trueport.targets.onnx import arithmetic, decompose, promote

HOME = "torch.onnx._internal.exporter._fx_passes"
SYMPTOM = "the program is run again under fake tensors, where its graph tells the same"


def _pass(name: str, ours: Any) -> Patch:
    """Ours is given torch's own first, then what that is called with."""
    return Patch(f"{HOME}.{name}", SYMPTOM, f"{HOME} of torch 2.13", partial(partial, ours), lambda: [])


class LateForm:
    """The form of one of torchlib's functions, read from its source when more is asked than the domain."""

    def __init__(self, function: Any, read: Callable[[Any], Any]) -> None:
        self.function, self.read = function, read

    @property
    def domain(self) -> str:
        """What the source would tell."""
        return str(self.function.opset.domain)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.read(self.function), name)


FORMS = Patch(
    "onnxscript._internal.values.TracedOnnxFunction.function_ir",
    "the sources of all of torchlib's five hundred functions are read in every export, for a domain that nobody asks for",
    "get_torchlib_ops of onnxscript 0.7.2",
    lambda original: property(lambda function: LateForm(function, original.fget)),
    lambda: [],
)
ANGLES = Patch(
    "onnxscript.function_libs.torch_lib.ops.core._atan2",
    "the angle of a complex number on the negative axis has the wrong sign",
    "aten_angle_complex of onnxscript 0.7.2",
    lambda original: arithmetic.angled,
    lambda: [],
)
PASSES = (
    _pass("decompose_with_registry", decompose.decomposed),
    _pass("insert_type_promotion_nodes", promote.promoted),
)


def spared_passes() -> AbstractContextManager[None]:
    """Within, torch.onnx.export takes these passes; its own where torch has moved them."""
    return applied_where_there((FORMS, ANGLES, *PASSES))
