"""Random inputs of the kind that a sample shows: what ``proof.inputs`` is where the inputs' meaning is not known."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trueport.dtypes import numpy_dtype
from trueport.errors import ArtifactError
from trueport.interface import Interface

FEW = 4
"""A float input of at most so many different values, such as a mask, takes no others."""

KEPT = 4096
"""Numbers of a sample that the manifest keeps, at most."""


def draws_of(feeds: Mapping[str, torch.Tensor]) -> dict[str, dict[str, Any]]:
    """How to draw each input, ``{"low", "high"}``, ``{"choices"}`` or ``{"mean", "deviation"}``; a small sample too."""
    small = sum(tensor.numel() for tensor in feeds.values()) <= KEPT
    return {name: _draw_of(tensor) | ({"sample": _listed(tensor)} if small else {}) for name, tensor in feeds.items()}


def _listed(tensor: torch.Tensor) -> list[Any]:
    """The values in a row; what JSON has no number for as a word."""
    numbers = (tensor.double() if tensor.is_floating_point() else tensor).flatten().tolist()
    return [number if abs(number) < float("inf") else str(number) for number in numbers]


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


def drawn_of(interface: Interface, source: Mapping[str, Any], seed: int) -> tuple[Drawn, dict[str, int]]:
    """What draws a module's inputs, and the sizes at which it was traced, as a manifest's ``source`` tells them.

    Raises:
        ArtifactError: it tells nothing that can be drawn.
    """
    try:
        sizes = {dimension.name: source["sizes"][dimension.name] for dimension in interface.dimensions}
        drawn = Drawn(interface, source["draws"], seed)
        for extreme in ("", "low", "high", "zero"):
            drawn.draw("form", sizes, extreme)
        drawn.sample(sizes)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            "The manifest's source tells no sizes or no inputs of the module", "Export again."
        ) from error
    return drawn, sizes


class Drawn:
    """Draws all inputs of an interface at given sizes; the same seed and case give the same.

    Args:
        interface: whose inputs.
        draws: as ``draws_of`` describes them.
        seed: of all draws.
    """

    def __init__(self, interface: Interface, draws: Mapping[str, Mapping[str, Any]], seed: int) -> None:
        self.interface, self.draws, self.seed = interface, draws, seed

    def draw(
        self, case: str, sizes: Mapping[str, int], extreme: str = "", *, factor: float = 1.0
    ) -> dict[str, np.ndarray]:
        """Inputs by name.

        Args:
            case: its name.
            sizes: of every dimension.
            extreme: ``low``, ``high`` or ``zero`` in place of random values.
            factor: of the random floats that may be anything.
        """
        rng = np.random.default_rng([self.seed, zlib.crc32(case.encode())])
        drawn = {}
        for tensor in self.interface.inputs:
            draw = self.draws.get(tensor.name, {})
            array = self._array(rng, draw, tensor.concrete(sizes), extreme)
            drawn[tensor.name] = (array * factor if "mean" in draw else array).astype(numpy_dtype(tensor.dtype))
        return drawn

    @property
    def scales(self) -> bool:
        """Whether an input takes any float."""
        return any("mean" in self.draws.get(tensor.name, {}) for tensor in self.interface.inputs)

    def sample(self, sizes: Mapping[str, int]) -> dict[str, np.ndarray] | None:
        """The sample itself at the sizes at which it was traced; None where it was too large to be kept."""
        kept = {}
        for tensor in self.interface.inputs:
            values = self.draws.get(tensor.name, {}).get("sample")
            shape = tensor.concrete(sizes)
            if values is None or len(values) != int(np.prod(shape)):
                return None
            dtype = numpy_dtype(tensor.dtype)
            numbers = [float(value) for value in values] if dtype.kind not in "iub" else values
            kept[tensor.name] = np.array(numbers).astype(dtype).reshape(shape)
        return kept

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
