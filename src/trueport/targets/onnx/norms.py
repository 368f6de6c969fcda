"""ONNX forms of norms whose mean is taken out first: a variance as E[x^2] - E[x]^2 may be negative, and NaN behind it."""

from collections.abc import Callable
from typing import Any

from onnxscript import opset18 as op


def group_norm(
    x: Any, num_groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5, cudnn_enabled: bool = True
) -> Any:
    """``group_norm`` of (batch, channels, ...), as an instance norm of (batch, groups, numbers)."""
    rows = op.Reshape(x, op.Constant(value_ints=[0, num_groups, -1]))
    ones, zeros = (op.CastLike(op.Constant(value_floats=[each] * num_groups), x) for each in (1.0, 0.0))
    normed = op.Reshape(_normed(rows, ones, zeros, [2], eps), op.Shape(x))
    return _scaled(normed, weight, bias, len(x.shape))


def instance_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    running_mean: Any = None,
    running_var: Any = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = False,
) -> Any:
    """``instance_norm`` of (batch, channels, ...)."""
    from onnxscript.function_libs.torch_lib.ops import core

    rank = len(x.shape)
    if use_input_stats:
        mean = op.ReduceMean(x, op.Constant(value_ints=list(range(2, rank))), keepdims=1)
        x, shape = op.Sub(x, mean), x.shape
        x.shape = shape
    return core.aten_instance_norm(x, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, False)


def _normed(x: Any, scale: Any, offset: Any, axes: list[int], eps: float) -> Any:
    mean = op.ReduceMean(x, op.Constant(value_ints=axes), keepdims=1)
    return op.InstanceNormalization(op.Sub(x, mean), scale, offset, epsilon=eps)


def _scaled(x: Any, weight: Any, bias: Any, rank: int) -> Any:
    """Times and plus what each channel has."""
    along = op.Constant(value_ints=[-1] + [1] * (rank - 2))
    x = x if weight is None else op.Mul(x, op.Reshape(weight, along))
    return x if bias is None else op.Add(x, op.Reshape(bias, along))


def forms() -> dict[Callable[..., Any], Callable[..., Any]]:
    """By torch operator."""
    import torch

    return {torch.ops.aten.group_norm.default: group_norm, torch.ops.aten.instance_norm.default: instance_norm}
