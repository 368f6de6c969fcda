"""Random inputs of the kind that a sample shows: what ``proof.inputs`` is where the inputs' meaning is not known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trueport.dtypes import numpy_dtype
from trueport.interface import Interface

FEW = 4
"""A float input of at most so many different values, such as a mask, takes no others."""


def draws_of(feeds: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """How to draw each input: ``{"low", "high"}``, ``{"choices"}`` or ``{"mean", "deviation"}``."""
    return {name: _draw_of(tensor) for name, tensor in feeds.items()}


def _draw_of(tensor: torch.Tensor) -> dict[str, Any]:
    if tensor.is_floating_point():
        tensor = tensor[tensor.isfinite()]  # one NaN would make every draw NaN, and nothing could be compared
    if tensor.numel() == 0:
        return {"mean": 0.0, "deviation": 1.0}
    if not tensor.is_floating_point() and tensor.dtype != torch.bool:
        return {"low": int(tensor.min()), "high": int(tensor.max())}
    values = tensor.double().unique()
    if len(values) <= FEW and (tensor.numel() > len(values) or tensor.dtype == torch.bool):
        return {"choices": [str(value) for value in values.tolist()]}
    if float(values.min()) >= 0:
        return {"lowest": float(values.min()), "highest": float(values.max())}
    return {
        "mean": float(tensor.double().mean()),
        "deviation": float(tensor.double().std()) if len(values) > 1 else 1.0,
    }


class Drawn:
    """Draws all inputs of an interface at given sizes; the same seed and case give the same.

    Args:
        interface: whose inputs.
        draws: as ``draws_of`` describes them.
        seed: of all draws.
    """

    def __init__(self, interface: Interface, draws: Mapping[str, Mapping[str, Any]], seed: int) -> None:
        self.interface, self.draws, self.seed = interface, draws, seed

    def draw(self, case: str, sizes: Mapping[str, int], extreme: str = "") -> dict[str, np.ndarray]:
        """Inputs by name.

        Args:
            case: its name.
            sizes: of every dimension.
            extreme: ``low``, ``high`` or ``zero`` in place of random values.
        """
        rng = np.random.default_rng([self.seed, zlib.crc32(case.encode())])
        return {
            tensor.name: self._array(rng, self.draws.get(tensor.name, {}), tensor.concrete(sizes), extreme).astype(
                numpy_dtype(tensor.dtype)
            )
            for tensor in self.interface.inputs
        }

    def _array(
        self, rng: np.random.Generator, draw: Mapping[str, Any], shape: tuple[int, ...], extreme: str
    ) -> np.ndarray:
        if "low" in draw:
            fixed = {"low": draw["low"], "high": draw["high"], "zero": draw["low"]}
            return np.full(shape, fixed[extreme]) if extreme else rng.integers(draw["low"], draw["high"] + 1, shape)
        if "choices" in draw:
            values = np.array([float(value) for value in draw["choices"]])
            return np.full(shape, values[-1 if extreme == "high" else 0]) if extreme else rng.choice(values, shape)
        if "lowest" in draw:
            fixed = {"low": draw["lowest"], "high": draw["highest"], "zero": draw["lowest"]}
            return np.full(shape, fixed[extreme]) if extreme else rng.uniform(draw["lowest"], draw["highest"], shape)
        mean, deviation = draw.get("mean", 0.0), draw.get("deviation", 1.0)
        if extreme:
            return np.full(shape, {"low": mean - 4 * deviation, "high": mean + 4 * deviation, "zero": 0.0}[extreme])
        return rng.normal(mean, deviation, shape)
