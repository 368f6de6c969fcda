"""Quantised linear layers: dynamic activations through torchao on a copy of the model.

Only linear layers are touched. Embeddings, norms, softmax, products of activations and everything that makes masks and
positions stay in float, so a mask hides exactly what it hid before.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from trueport.errors import LoweringError
from trueport.targets.quantized import Gate, Quantized

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = {
    "8da8w": "int8 activations, scaled for each token as it comes; int8 weights, one scale for each output channel",
    "8da4w": "int8 activations, scaled for each token as it comes; int4 weights, one scale for each group of 32",
    "int8": "int8 activations, scaled once by calibration; int8 weights, one scale for each output channel",
}
"""What each kind of quantisation does to a linear layer."""
GROUP = 32
"""Weights that share a scale under 8da4w: the smallest group that XNNPACK's kernels take."""


GATES = {
    "8da8w": Gate(
        0.90, 0.02, 0.10, 0.90, "8 bits move a choice only between near ties, of which drawn tokens make many"
    ),
    "8da4w": Gate(
        0.85, 0.15, 0.25, 0.85, "4 bits are 16 steps: a token in seven may move where several were about as likely"
    ),
    "int8": Gate(0.85, 0.05, 0.15, 0.85, "one scale for all tokens costs about a bit more than a scale for each"),
}
"""The gate of each kind."""


def check_options(kind: str, backend: str | None, block_size: int | None = None) -> None:
    """Refuse an unknown kind, kernels that have no quantised form, and blocks, which graphs have.

    Raises:
        LoweringError: with what to give instead.
    """
    if kind not in KINDS:
        raise LoweringError(f"There is no quantisation {kind}", f"Choose from {', '.join(KINDS)}.")
    if backend == "portable":
        raise LoweringError(
            f"--quantize {kind} runs on XNNPACK's kernels, and --backend portable asks for none of them",
            "Leave one of the two out.",
        )
    if block_size is not None:
        raise LoweringError("--block-size is for ONNX graphs", f"Leave it out, {kind} has its own.")


def quantized(model: PreTrainedModel, kind: str) -> tuple[PreTrainedModel, Quantized]:
    """A copy of the model to export, and what is quantised in it; the model itself stays as it is.

    Under ``int8`` the copy is still in float: its scales are found once it is captured (``calibrate.py``).

    Raises:
        LoweringError: it is not in float32, or no layer can be quantised.
    """
    dtypes = sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters() if p.is_floating_point()})
    if dtypes != ["float32"]:
        raise LoweringError(f"--quantize {kind} starts from float32, not {', '.join(dtypes)}", "Give --dtype float32.")
    # Its parameters are shared: nothing writes to them, and those of linear layers are replaced.
    made = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
    _spell_linear(made)
    left = {name: why for name, module in made.named_modules() if (why := _why_float(module, kind))}
    layers = tuple(n for n, module in made.named_modules() if isinstance(module, nn.Linear) and n not in left)
    if not layers:
        why = next(iter(left.values()), "it has no linear layer")
        raise LoweringError(f"--quantize {kind} fits no layer of {type(model).__name__}: {why}", "Leave it out.")
    if kind != "int8":
        _quantize_weights(made, kind, layers)
    return made, Quantized(kind, layers, left, GATES[kind])


def _why_float(module: nn.Module, kind: str) -> str:
    """Why a module's matrices stay in float; empty for a module that is quantised or has none."""
    if isinstance(module, nn.Linear):
        if kind == "8da4w" and module.in_features % GROUP:
            return f"its width of {module.in_features} is no multiple of the group of {GROUP}"
        return ""
    shapes = [tuple(p.shape) for p in module.parameters(recurse=False) if p.ndim > 1]
    if not shapes or isinstance(module, nn.Embedding):
        return ""
    return f"{type(module).__name__} is no linear layer"


def _quantize_weights(model: nn.Module, kind: str, layers: tuple[str, ...]) -> None:
    """Put torchao's quantised weights in place: symmetric, as XNNPACK's kernels ask; a tied embedding keeps its own."""
    from torchao.quantization import Int8DynamicActivationIntxWeightConfig, quantize_
    from torchao.quantization.granularity import PerAxis, PerGroup

    chosen = set(layers)
    quantize_(
        model,
        Int8DynamicActivationIntxWeightConfig(
            weight_dtype=getattr(torch, "int4" if kind == "8da4w" else "int8"),
            weight_granularity=PerGroup(GROUP) if kind == "8da4w" else PerAxis(0),
        ),
        filter_fn=lambda _module, name: name in chosen,
    )


def _spell_linear(model: nn.Module) -> None:
    """Write GPT-2's Conv1D, a linear layer whose weight lies transposed, as the linear layer that it is."""
    from transformers.pytorch_utils import Conv1D

    for name, module in list(model.named_modules()):
        if isinstance(module, Conv1D):
            width, outputs = module.weight.shape
            linear = nn.Linear(width, outputs, bias=True)
            linear.weight = nn.Parameter(module.weight.detach().t().contiguous(), requires_grad=False)
            linear.bias = nn.Parameter(module.bias.detach().clone(), requires_grad=False)
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, linear.eval())
