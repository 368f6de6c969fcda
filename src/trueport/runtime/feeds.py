"""From what a caller gives to what a graph reads: defaults, dtypes, and one clear line for what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from trueport.errors import RunError
from trueport.interface import PAST, Dimension, Interface, Tensor, evaluate, terms

TOO_LONG = "Give a shorter input, or generate fewer tokens."


class Feeder:
    """Completes and checks the plain inputs of one component.

    What is missing gets what transformers would give it: ``attention_mask`` ones over past and new tokens,
    ``token_type_ids`` zeros, ``position_ids`` the count of real tokens so far, as ``generate`` counts them.

    Args:
        name: the component's file, for messages.
        interface: the component's interface.
    """

    def __init__(self, name: str, interface: Interface) -> None:
        self.name = name
        self.interface = interface
        self.tensors = {tensor.name: tensor for tensor in interface.plain_inputs}
        self.dtypes: dict[str, torch.dtype] = {name: getattr(torch, t.dtype) for name, t in self.tensors.items()}
        self.bounds = [d for d in interface.dimensions if d.minimum > 0 or d.maximum is not None]
        sums = {axis for tensor in self.tensors.values() for axis in tensor.shape if _is_sum(axis)}
        self.totals = [_Total(axis, interface) for axis in sums]

    def __call__(self, given: Mapping[str, Any], past: Mapping[str, int]) -> dict[str, torch.Tensor]:
        """Every plain input of the component, on its dtype.

        Args:
            given: tensors or arrays by name; None counts as not given.
            past: lengths of the state's dimensions, such as ``past_sequence_length``.

        Raises:
            RunError: an input is unknown, missing, or of a dtype or size that the component does not serve.
        """
        feeds = {name: self._convert(name, value) for name, value in given.items() if value is not None}
        feeds = {name: tensor for name, tensor in feeds.items() if not self._is_idle(name, tensor)}
        sizes = dict(past)
        for name, tensor in feeds.items():
            self._measure(self.tensors[name], tensor, sizes)
        self._check_bounds(sizes)
        for name, declared in self.tensors.items():
            if name not in feeds:
                feeds[name] = self._default(declared, feeds, sizes)
            elif name == "position_ids" and feeds[name].shape[0] != sizes.get("batch_size", 1):
                feeds[name] = feeds[name].expand(sizes["batch_size"], -1)
        for name, tensor in feeds.items():
            self._check_sums(self.tensors[name], tensor, sizes)
        return feeds

    def _convert(self, name: str, value: Any) -> torch.Tensor:
        """``value`` as a tensor of the declared dtype; integers stay integers and floats floats, but a mask is a mask."""
        tensor = value if isinstance(value, torch.Tensor) else torch.as_tensor(np.asarray(value))
        wanted = self.dtypes.get(name)
        if wanted is None or tensor.dtype == wanted:
            return tensor
        masks = name.endswith("attention_mask") and bool(((tensor == 0) | (tensor == 1)).all())
        if not masks and tensor.is_floating_point() != wanted.is_floating_point:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise RunError(f"{self.name} takes {name} as {self.tensors[name].dtype}, not as {kind}")
        return tensor.to(wanted)

    def _is_idle(self, name: str, tensor: torch.Tensor) -> bool:
        """Whether an input that the graph does not have says nothing; one that says something is an error."""
        if name in self.tensors:
            return False
        if name.endswith("attention_mask"):
            if bool((tensor == 1).all()):
                return True
            raise RunError(f"{self.name} takes no {name}, so it cannot serve padded rows", "Give rows of one length.")
        if name == "token_type_ids" and not tensor.any():
            return True
        raise RunError(f"{self.name} has no input {name}; it takes {', '.join(self.tensors)}")

    def _measure(self, declared: Tensor, tensor: torch.Tensor, sizes: dict[str, int]) -> None:
        """Read dimension sizes off a tensor, and refuse what contradicts the earlier ones."""
        if tensor.ndim != len(declared.shape):
            raise self._misfit(declared, tensor)
        for axis, length in zip(declared.shape, tensor.shape, strict=True):
            if isinstance(axis, int):
                if axis != length:
                    raise self._misfit(declared, tensor)
            elif _is_sum(axis) or (declared.name == "position_ids" and axis == "batch_size" and length == 1):
                continue
            elif sizes.setdefault(axis, length) != length:
                raise self._misfit(declared, tensor, f" where {axis} is {sizes[axis]}")
        if declared.name == "input_ids" and tensor.numel() and int(tensor.min()) < 0:
            raise RunError(f"{self.name} got the token {int(tensor.min())} in input_ids; tokens count from 0")

    def _check_bounds(self, sizes: Mapping[str, int]) -> None:
        for dimension in self.bounds:
            size = sizes.get(dimension.name)
            if size is None:
                continue
            if size < dimension.minimum:
                raise RunError(f"{dimension.name} is {size}; {self.name} takes {dimension.minimum} or more")
            if dimension.maximum is not None and size > dimension.maximum:
                raise _too_long(self.name, dimension.name, size, dimension.maximum)
        for total in self.totals:
            total.check(self.name, sizes)

    def _check_sums(self, declared: Tensor, tensor: torch.Tensor, sizes: Mapping[str, int]) -> None:
        for axis, length in zip(declared.shape, tensor.shape, strict=True):
            if _is_sum(axis) and length != evaluate(axis, sizes):
                raise self._misfit(declared, tensor, f" where {axis} is {evaluate(axis, sizes)}")

    def _misfit(self, declared: Tensor, tensor: torch.Tensor, where: str = "") -> RunError:
        shape = ", ".join(str(axis) for axis in declared.shape)
        return RunError(f"{self.name} takes {declared.name} of shape ({shape}), not {tuple(tensor.shape)}{where}")

    def _default(self, declared: Tensor, feeds: Mapping[str, torch.Tensor], sizes: Mapping[str, int]) -> torch.Tensor:
        name = declared.name
        known = all(term in sizes for axis in declared.shape for term in terms(axis))
        if known and name.endswith("attention_mask"):
            return torch.ones(declared.concrete(sizes), dtype=self.dtypes[name])
        if known and name == "token_type_ids":
            return torch.zeros(declared.concrete(sizes), dtype=self.dtypes[name])
        if known and name == "position_ids":
            return _positions(feeds.get("attention_mask"), declared.concrete(sizes), sizes)
        raise RunError(f"{self.name} needs {name}; it takes {', '.join(self.tensors)}")


class _Total:
    """The bound of past and new tokens together.

    ``past_sequence_length`` is at most ``bound - 1`` where a table of positions bounds it: the last token's own
    position. Past and chunk may each keep their bound while their sum does not.
    """

    def __init__(self, axis: int | str, interface: Interface) -> None:
        self.axis = str(axis)
        past: list[Dimension] = [d for d in interface.dimensions if d.name == PAST and PAST in terms(axis)]
        self.maximum = past[0].maximum + 1 if past and past[0].maximum is not None else None

    def check(self, name: str, sizes: Mapping[str, int]) -> None:
        if self.maximum is None or any(term not in sizes for term in terms(self.axis)):
            return
        total = evaluate(self.axis, sizes)
        if total > self.maximum:
            raise _too_long(name, self.axis, total, self.maximum)


def _positions(mask: torch.Tensor | None, shape: tuple[int, ...], sizes: Mapping[str, int]) -> torch.Tensor:
    """Positions (batch, new) that count real tokens from 0 and are 0 where the mask is, as ``generate`` makes them."""
    if mask is not None:
        counted = (mask.long().cumsum(-1) - 1).masked_fill(mask == 0, 0)
        return counted[:, -shape[-1] :]
    past = sizes.get("past_sequence_length", 0)
    return torch.arange(past, past + shape[-1]).expand(shape)


def _is_sum(axis: int | str) -> bool:
    return isinstance(axis, str) and "+" in axis


def _too_long(name: str, dimension: str, size: int, maximum: int) -> RunError:
    remedy = "Give fewer rows or beams at once." if dimension == "batch_size" else TOO_LONG
    return RunError(f"{dimension} is {size}; {name} serves at most {maximum}", remedy)
