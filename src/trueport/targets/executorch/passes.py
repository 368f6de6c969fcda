"""XNNPACK's own passes over what it was given, without those that have nothing to do there.

Each of its seventeen passes traces each partition again, whether it changes anything or not. A pass whose operators are
known is left out where none of them is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from executorch.backends.xnnpack import _passes, xnnpack_preprocess
from executorch.backends.xnnpack._passes.channels_last_tagged_reshape_pass import ChannelsLastTaggedReshapePass
from executorch.backends.xnnpack._passes.decompose_batch_norm import DecomposeBatchNorm
from executorch.backends.xnnpack._passes.fuse_activation_pass import FuseActivationPass
from executorch.backends.xnnpack.utils.quant_utils import is_dequant, is_quant
from executorch.exir.dialects._ops import ops

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


class NeededPasses(_passes.XNNPACKPassManager):
    """XNNPACK's passes in their order, each left out where it has nothing to act on."""

    def transform(self) -> torch.export.ExportedProgram:
        """The program after the passes that had something to do."""
        program: torch.export.ExportedProgram = self.exported_program
        for kind in self.passes:
            acts = ACTS_ON.get(kind.__name__)
            if acts is None or any(acts(node) for node in program.graph.nodes if node.op == "call_function"):
                program = _passes.XNNPACKPassManager(program, passes=[kind]).transform()
        return program


@contextmanager
def only_needed() -> Iterator[None]:
    """While inside, XNNPACK's preprocessing runs NeededPasses."""
    with mock.patch.object(xnnpack_preprocess, "XNNPACKPassManager", NeededPasses):
        yield
