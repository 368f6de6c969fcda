"""Programs whose state is an input and an output: a custom module's, carried from call to call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from trueport.dtypes import array_of, tensor_of
from trueport.errors import RunError
from trueport.interface import PAST, terms
from trueport.targets.executorch.session import ProgramSession
from trueport.targets.rows import taken


@dataclass(frozen=True)
class Carried:
    """The tensors that one call hands to the next, never changed in place.

    Attributes:
        values: by input name.
        rows: the axis of the rows by input name; what it does not name is every row's.
    """

    values: Mapping[str, torch.Tensor]
    rows: Mapping[str, int]

    def take(self, rows: Sequence[int] | np.ndarray | torch.Tensor) -> Carried:
        """The state whose row i is this state's row ``rows[i]``; rows may repeat."""
        return Carried(taken(self.values, self.rows, rows), self.rows)

    def tensors(self) -> dict[str, torch.Tensor]:
        """By input name."""
        return dict(self.values)


class CarryingSession(ProgramSession):
    """One method whose state goes in and out; arguments as ``ProgramSession`` takes them."""

    def empty_state(self, batch: int | Mapping[str, int], given: Mapping[str, Any] | None = None) -> Carried:  # type: ignore[override]
        """The state before the first call: zeros, of length 0 along the axes that only a state has.

        Args:
            batch: rows, or the sizes of dimensions by name.
            given: not used.
        """
        sizes = batch if isinstance(batch, Mapping) else {"batch_size": batch}
        values = {}
        for pair in self.interface.state:
            shape = self.interface.input(pair.input).shape
            lengths = [size if isinstance(size, int) else sizes.get(size, 0) for size in shape]
            values[pair.input] = torch.zeros(lengths, dtype=self.dtypes[pair.input])
        return Carried(values, self.interface.row_axes)

    def sizes(self, state: Carried) -> dict[str, int]:  # type: ignore[override]
        """Sizes of the dimensions that the state's tensors have."""
        return {
            axis: int(length)
            for name, tensor in state.values.items()
            for axis, length in zip(self.interface.input(name).shape, tensor.shape, strict=True)
            if isinstance(axis, str) and len(terms(axis)) == 1
        }

    def shorten(self, state: Carried, count: int) -> Carried:  # type: ignore[override]
        """The state without its last ``count`` tokens.

        Raises:
            RunError: a part of it has no axis of tokens, such as a recurrent state.
        """
        axes = {pair.input: pair.axis for pair in self.interface.state}
        if any(self.interface.input(name).shape[axis] != PAST for name, axis in axes.items()):
            raise RunError(f"The state of {self.path.name} cannot go back by {count} tokens")
        kept = {n: t.narrow(axes[n], 0, max(t.shape[axes[n]] - count, 0)) for n, t in state.values.items()}
        return Carried(kept, state.rows)

    def step(self, feeds: Mapping[str, np.ndarray], state: Carried) -> tuple[dict[str, np.ndarray], Carried]:  # type: ignore[override]
        """Plain inputs and a state to plain outputs and the next state."""
        outputs, following = self.advance({name: tensor_of(array) for name, array in feeds.items()}, state)
        return {name: array_of(tensor) for name, tensor in outputs.items()}, following

    def advance(  # type: ignore[override]
        self, feeds: Mapping[str, torch.Tensor], state: Carried | None
    ) -> tuple[dict[str, torch.Tensor], Carried]:
        """``step`` on torch tensors."""
        self._check_names(feeds)
        if state is None:
            state = self.empty_state(self._shown(feeds))
        outputs = self._execute({**state.values, **feeds})
        following = {pair.input: outputs[pair.output].clone() for pair in self.interface.state}
        return {t.name: outputs[t.name] for t in self.interface.plain_outputs}, Carried(following, state.rows)

    def _shown(self, feeds: Mapping[str, torch.Tensor]) -> dict[str, int]:
        """Sizes of the dimensions that plain inputs show."""
        return {
            axis: int(length)
            for tensor in self.interface.plain_inputs
            for axis, length in zip(tensor.shape, feeds[tensor.name].shape, strict=True)
            if isinstance(axis, str) and len(terms(axis)) == 1
        }
