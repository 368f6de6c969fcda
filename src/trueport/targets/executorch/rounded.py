"""The four-bit weights of a model's linear layers, rounded on the prompts that calibrate."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from trueport.proof.calibration import Original, answered, batches
from trueport.proof.reference import Reference
from trueport.roles.component import Component
from trueport.targets.rounding import Grid, levels_on, portions

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trueport.proof.inputs import Batch

LOWEST, HIGHEST = -8, 7
"""Levels of four signed bits."""


def round_again(
    made: nn.Module, model: PreTrainedModel, layers: Iterable[str], parts: Sequence[Component], original: Original
) -> None:
    """Choose the levels of torchao's weights anew, their scales as they are; what no prompt reaches keeps its own.

    Args:
        made: the copy whose layers are quantised; its levels are written to.
        model: what it is a copy of, in float32.
        layers: paths of the quantised layers, in both.
        parts: the components that are made of the copy, whose sizes bound the prompts.
        original: the model and its prompts.
    """
    reference = _reference(model, original)
    given = answered(batches({part.name: part.interface for part in parts}, original), original, reference.forward)
    for portion in portions(_shared(model, layers), lambda names: [made.get_submodule(names[0]).in_features]):  # type: ignore[list-item]
        met = _moments(model, original, given, [name for names in portion for name in names])
        for names in portion:
            own = [met[name] for name in names if name in met]
            total = sum(own[1:], own[0]) if own else np.array(np.nan)
            if np.isfinite(total).all():
                _round(made, names, model.get_submodule(names[0]), total)


def _round(made: nn.Module, names: Sequence[str], layer: nn.Module, moments: np.ndarray) -> None:
    weights: list[Any] = [made.get_submodule(name).weight for name in names]
    weight = layer.get_parameter("weight").detach()
    matrix = weight if isinstance(layer, nn.Linear) else weight.t()  # GPT-2's Conv1D
    scales = weights[0].scale.numpy()
    grid = Grid(matrix.shape[1] // scales.shape[1], scales, np.zeros_like(scales), LOWEST, HIGHEST)
    levels = torch.from_numpy(levels_on(matrix.numpy(), moments, grid).astype(np.int8))
    for each in weights:
        each.qdata.copy_(levels)


def _shared(model: nn.Module, layers: Iterable[str]) -> list[list[str]]:
    """Paths by the parameter that they share: equal levels are stored once, and have to stay equal."""
    found: dict[int, list[str]] = {}
    for name in layers:
        found.setdefault(id(model.get_submodule(name).weight), []).append(name)
    return list(found.values())


def _moments(
    model: PreTrainedModel, original: Original, given: Iterable[Batch], names: Iterable[str]
) -> dict[str, np.ndarray]:
    """X^T X, (width, width) float32, of the activations X that each of these layers meets on the batches."""
    found: dict[str, np.ndarray] = {}

    def told(name: str, _module: nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        value = args[0].reshape(-1, args[0].shape[-1])
        total = (value.T @ value).numpy()
        found[name] = found[name] + total if name in found else total

    reference = _reference(model, original)  # a new one: the answers that another remembers meet no layer
    with ExitStack() as stack:
        for name in names:
            handle = model.get_submodule(name).register_forward_pre_hook(partial(told, name))
            stack.callback(handle.remove)
        for batch in given:
            reference.forward(batch)
    return found


def _reference(model: PreTrainedModel, original: Original) -> Reference:
    return Reference(model, original.role, () if original.role == "encoder" else ("logits",))
