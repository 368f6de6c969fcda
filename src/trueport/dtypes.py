"""The dtypes of an export, and a module in memory in another one."""

from __future__ import annotations

import copy
import re
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DTYPES = ("float32", "float16", "bfloat16")


def converted(model: PreTrainedModel, dtype: str) -> PreTrainedModel:
    """A copy whose tensors have the dtypes that ``from_pretrained(dtype=...)`` gives them.

    ``model.to(dtype)`` would round what is computed and not learned as well, such as rotary frequencies.
    """
    import torch

    copied, target = copy.deepcopy(model), getattr(torch, dtype)
    plan = copied._get_dtype_plan(target)
    saved, computed = set(copied.state_dict(keep_vars=True)), _computed_dtypes(copied, target)
    for name, tensor in [*copied.named_parameters(), *copied.named_buffers()]:
        kept = next((to for part, to in plan.items() if re.search(rf"(^|\.){part}(\.|$)", name)), target)
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(kept if name in saved else computed.get(name, tensor.dtype))
    copied.config.dtype = target
    return copied.eval().requires_grad_(False)


def _computed_dtypes(model: PreTrainedModel, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """The dtypes of the buffers that the class computes when it is built in ``dtype``."""
    import torch

    try:
        with torch.device("meta"), torch.random.fork_rng(devices=[]):
            built = type(model)._from_config(copy.deepcopy(model.config), dtype=dtype)
    except Exception:  # a class of the user's own that its config alone does not build: its buffers stay as they are
        return {}
    return {name: tensor.dtype for name, tensor in built.named_buffers()}


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def array_of(tensor: torch.Tensor) -> np.ndarray:
    """The tensor's memory as an array; bfloat16 is ml_dtypes' own."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(numpy_dtype("bfloat16"))
    return tensor.numpy()


def tensor_of(array: Any) -> torch.Tensor:
    """The array's memory as a tensor, bfloat16 included; a tensor as it is."""
    import torch

    if isinstance(array, torch.Tensor):
        return array
    array = np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)
