"""ExecuTorch's passes over a program, and XNNPACK's over what it was given, in less time.

Each pass runs its program again under fake tensors, whether it changes anything or not. What an operator gives there is
asked once for all of them. Of XNNPACK's seventeen, a pass whose operators are known is left out where none of them is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from unittest import mock

import torch
from executorch.backends.xnnpack import _passes, xnnpack_preprocess
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack._passes.decompose_batch_norm import DecomposeBatchNorm
from executorch.backends.xnnpack._passes.fuse_activation_pass import FuseActivationPass
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.dialects._ops import ops
from torch._subclasses import FakeTensor

from trueport.memo import Memo
from trueport.patches.context import applied_where_there
from trueport.patches.patch import Patch

Acts = Callable[[torch.fx.Node], bool]
_aten = ops.edge.aten


def _one_of(operators: Iterable[object]) -> Acts:
    known = frozenset(operators)
    return lambda node: node.target in known


ACTS_ON: dict[str, Acts] = {
    "DimOrderOpsRevertPass": lambda node: "dim_order" in str(node.target),
    "ConvertToUpsampleBilinear2d": _one_of([_aten.upsample_bilinear2d.vec]),
    "ConvertToLinearPass": _one_of([_aten.mm.default, _aten.addmm.default, _aten.bmm.default]),
    "PropagateCustomMetaPass": lambda node: is_quant(node) or is_dequant(node),
    # Its pattern guards against rows without keys, as ExecuTorch's own decomposition of attention does.
    "ConvertToSDPAPass": _one_of([_aten.logical_not.default]),
    "FuseBatchNormPass": _one_of(DecomposeBatchNorm.BATCH_NORM_OPS),
    "DecomposeBatchNorm": _one_of(DecomposeBatchNorm.BATCH_NORM_OPS),
    "FuseActivationPass": _one_of(FuseActivationPass.FUSEABLE_ACTIVATIONS),
    "DecomposeConcatenate": _one_of([_aten.cat.default]),
    "RemoveGetItemPass": _one_of([_aten.max_pool2d_with_indices.default, _aten.max.dim]),
    "InsertPadQDQPass": _one_of([_aten.constant_pad_nd.default]),
    "Conv1dUnsqueezePass": _one_of([_aten.convolution.default]),
    "PReLUReshapePass": _one_of([_aten._prelu_kernel.default]),
    "ChannelsLastTaggedReshapePass": _one_of(ChannelsLastTaggedReshapePass.memory_sensitive_ops_nhwc),
    "RemoveRedundantCopyPass": _one_of([_aten._to_copy.default]),
}
"""By name of a pass: the operators without which it changes nothing. A pass that is not here always runs."""

SPOILS: dict[str, Acts] = {
    # The second norm's scale goes on top of the first's, and both layers come to read it.
    "FuseBatchNormPass": lambda node: (
        node.target in (_aten.convolution.default, _aten.linear.default)
        and isinstance(node.args[1], torch.fx.Node)
        and len(node.args[1].users) > 1
    ),
}
"""By name of a pass: the operators at which executorch 1.4.1's gives other numbers."""


class NeededPasses(_passes.XNNPACKPassManager):
    """XNNPACK's passes in their order, each left out where it has nothing to act on, or would spoil something."""

    def transform(self) -> torch.export.ExportedProgram:
        """The program after the passes that had something to do."""
        program: torch.export.ExportedProgram = self.exported_program
        for kind in self.passes:
            acts, spoils = (known.get(kind.__name__) for known in (ACTS_ON, SPOILS))
            called = [node for node in program.graph.nodes if node.op == "call_function"]
            if (acts is None or any(map(acts, called))) and not (spoils and any(map(spoils, called))):
                program = _passes.XNNPACKPassManager(program, passes=[kind]).transform()
        return program


class Remembering(torch.fx.Interpreter):
    """What a pass runs operators with, where the same has been asked before.

    Attributes:
        told: what the next operator is known to give.
    """

    def __init__(self, memo: Memo) -> None:
        super().__init__(torch.fx.GraphModule(torch.nn.Module(), torch.fx.Graph()))
        self.memo = memo
        self.told: Any = None

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        """The operator's result: a shape, in the graph that the pass writes."""
        told, self.told = self.told, None
        known = None if told is None else self.memo.like(told)
        return self.memo.call(target, args, kwargs) if known is None else known


def _remembering(original: Callable[..., Any]) -> Callable[..., Any]:
    memos: dict[Any, Memo] = defaultdict(lambda: Memo([executorch_call_delegate]))  # each method has a mode of its own

    def fx(self: Any, kind: str, target: Any, args: Any, kwargs: Any, meta: Any) -> Any:
        if not isinstance(self.interpreter, Remembering):
            self.interpreter = Remembering(memos[self.fake_tensor_mode])
        if target is executorch_call_delegate and _is_of(self.fake_tensor_mode, meta.data.get("val")):
            # Its node tells; to run a delegate, torch puts the whole of its program together anew.
            self.interpreter.told = meta.data["val"]
        return original(self, kind, target, args, kwargs, meta)

    return fx


def _is_of(mode: Any, given: Any) -> bool:
    """Whether these are several results without memory, of this mode."""
    several = isinstance(given, (tuple, list))
    return several and all(isinstance(value, FakeTensor) and value.fake_mode is mode for value in given)


SHAPES = [
    Patch(
        path, "a dozen passes ask torch for the same shapes", "ExecuTorch 1.4 and torch 2.13", _remembering, lambda: []
    )
    for path in (
        "executorch.exir.pass_base._ExportPassBase._fx",
        "torch._export.pass_base._ExportPassBaseDeprecatedDoNotUse._fx",
    )
]


def remembered_shapes() -> AbstractContextManager[None]:
    """Within, ExecuTorch's passes ask for the shape that an operator gives once."""
    return applied_where_there(SHAPES)


@contextmanager
def only_needed() -> Iterator[None]:
    """While inside, XNNPACK's preprocessing runs NeededPasses."""
    with mock.patch.object(xnnpack_preprocess, "XNNPACKPassManager", NeededPasses):
        yield
