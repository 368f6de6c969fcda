"""What a module's weights must be: plain tensors, whose values an artefact can hold."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from trueport.errors import SourceError


def check_plain(model: nn.Module) -> None:
    """Refuse weights of other kinds than an artefact has.

    Raises:
        SourceError: a weight is sparse, or another tensor in disguise, as torchao's quantised ones are.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        disguised = bool(is_traceable_wrapper_subclass(tensor))
        if disguised:
            raise SourceError(
                f"{name} is no plain tensor but a {type(tensor).__module__}.{type(tensor).__name__}",
                "Export the model as it was before its weights were replaced; --quantize makes them small.",
            )
        if tensor.layout is not torch.strided:
            kind = str(tensor.layout).removeprefix("torch.")
            raise SourceError(f"{name} has the layout {kind}, which no graph has", "Make it dense: .to_dense().")
