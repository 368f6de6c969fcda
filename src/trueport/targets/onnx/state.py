"""What one step of a graph hands to the next."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.targets.onnx.values import from_torch, to_torch
from trueport.targets.rows import taken

if TYPE_CHECKING:
    import torch

SPARE = 8
"""A buffer that has to grow gets an eighth more than it needs: what is copied to grow is a constant per token."""
LEAST = 16
"""Tokens of room that a buffer has at least when it is made."""
_CLAIMS = threading.Lock()
"""Two threads may go on from one state: only the first may have its buffers."""


class State:
    """The tensors that one step hands to the next, in the runtime's own buffers; never changed in place.

    Attributes:
        values: OrtValues by input name.
        rows: the axis of the rows by input name; what it does not name is every row's.
        past: tokens so far, where no tensor is as long as they are.
    """

    def __init__(self, values: dict[str, Any], rows: Mapping[str, int] | None = None, past: int = 0) -> None:
        self.values = values
        self.rows = rows or {}
        self.past = past

    def take(self, rows: Sequence[int] | np.ndarray | torch.Tensor) -> State:
        """The state whose row i is this state's row ``rows[i]``; rows may repeat."""
        found = taken(self.tensors(), self.rows, rows)
        return self._of({name: from_torch(tensor) for name, tensor in found.items()})

    def _of(self, values: dict[str, Any]) -> State:
        """The same kind of state with these values, which are its own."""
        return State(values, self.rows, self.past)

    def shorten(self, axes: Mapping[str, int], count: int) -> State:
        """The state without the last ``count`` entries along ``axes[name]``; tensors that it does not name stay."""
        values = dict(self.values)
        for name, axis in axes.items():
            tensor = to_torch(values[name])
            values[name] = from_torch(tensor.narrow(axis, 0, max(tensor.shape[axis] - count, 0)))
        return State(values, self.rows)

    def length(self, name: str, axis: int) -> int:
        """Length of one tensor's axis."""
        return int(self.values[name].shape()[axis])

    def tensors(self) -> dict[str, torch.Tensor]:
        """Views of the buffers by input name."""
        return {name: to_torch(value) for name, value in self.values.items()}


@dataclass
class Buffers:
    """Memory for caches that are written in place.

    Attributes:
        values: OrtValues by input name, longer along their axes than what they hold.
        capacity: their length.
        filled: entries that a state has, or that a step was given to write; what lies behind them is nobody's.
        binding: the session that wrote them last, and how it bound them.
    """

    values: dict[str, Any]
    capacity: int
    filled: int
    binding: tuple[Any, Any] | None = None


class BufferedState(State):
    """A state whose caches are the beginnings of buffers, which the next step writes on in place.

    To its owner it never changes: a step writes only behind what any state holds. A state that is not the newest of its
    buffers, one that was shortened or that two go on from, gets buffers of its own first.

    Attributes:
        buffers: shared by the states that followed each other.
        axes: the axis of the tokens by input name.
        used: tokens in this state.
        fixed: what does not grow with the tokens, a recurrent state, by input name: new from every step.
    """

    def __init__(
        self,
        buffers: Buffers,
        axes: Mapping[str, int],
        used: int,
        rows: Mapping[str, int],
        fixed: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__({**buffers.values, **fixed} if fixed else buffers.values, rows)
        self.buffers, self.axes, self.used, self.fixed = buffers, axes, used, fixed or {}

    def _of(self, values: dict[str, Any]) -> BufferedState:
        """In buffers of its own, without room."""
        grown = {name: value for name, value in values.items() if name in self.axes}
        fixed = {name: value for name, value in values.items() if name not in self.axes}
        return BufferedState(Buffers(grown, self.used, self.used), self.axes, self.used, self.rows, fixed)

    def shorten(self, axes: Mapping[str, int], count: int) -> BufferedState:
        """The state without the last ``count`` tokens."""
        return BufferedState(self.buffers, self.axes, max(self.used - count, 0), self.rows, self.fixed)

    def length(self, name: str, axis: int) -> int:
        """Length of one tensor's axis, as far as it is used."""
        return self.used if self.axes.get(name) == axis else super().length(name, axis)

    def tensors(self) -> dict[str, torch.Tensor]:
        """Views of what the buffers hold, by input name."""
        return self._grown() | {name: to_torch(value) for name, value in self.fixed.items()}

    def _grown(self) -> dict[str, torch.Tensor]:
        return {n: to_torch(value).narrow(self.axes[n], 0, self.used) for n, value in self.buffers.values.items()}

    def room(self, total: int) -> BufferedState:
        """This state in buffers in which one step, and no other, may write its tokens up to ``total``."""
        with _CLAIMS:
            if self.used == self.buffers.filled and total <= self.buffers.capacity:
                self.buffers.filled = total
                return self
        capacity = total + max(total // SPARE, LEAST)
        values = {}
        for name, tensor in self._grown().items():
            shape = list(tensor.shape)
            shape[self.axes[name]] = capacity
            wider = tensor.new_zeros(shape)  # zeros: a hidden key's value is multiplied by 0, and must not be NaN
            wider.narrow(self.axes[name], 0, self.used).copy_(tensor)
            values[name] = from_torch(wider)
        return BufferedState(Buffers(values, capacity, total), self.axes, self.used, self.rows, self.fixed)

    def following(self, total: int, fixed: Mapping[str, Any]) -> BufferedState:
        """The state after a step wrote its tokens up to ``total`` into the room that it was given, and gave ``fixed``."""
        return BufferedState(self.buffers, self.axes, total, self.rows, fixed)
