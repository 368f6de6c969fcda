"""The float64 original of a model whose recurrences compute in float32 whatever they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


class _Doubled(TorchFunctionMode):
    """Within, what is float64 and is to become float32 stays float64."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if args and isinstance(args[0], torch.Tensor) and args[0].dtype == torch.float64:
            if func is torch.Tensor.float:
                return args[0]
            if func in (torch.Tensor.to, torch.Tensor.type):
                args = [torch.float64 if part is torch.float32 else part for part in args]
            if given.get("dtype") is torch.float32:
                given["dtype"] = torch.float64
        return func(*args, **given)


def doubled(model: nn.Module) -> AbstractContextManager[Any]:
    """Within, a float64 model with recurrent kernels computes in float64 throughout.

    These kernels cast what they are given to float32, and a recurrence adds up what that rounds off, token by token: the
    truth would be off by as much as what is held against it. Of other models the casts stay: a softmax or a norm in
    float32 rounds once.
    """
    from trueport.patches.patch import modules_of
    from trueport.patches.transformers_kernels import kernels_of

    recurrent = kernels_of(modules_of(model))
    return _Doubled() if recurrent else nullcontext()
