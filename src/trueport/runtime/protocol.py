"""What a model needs of a target's session."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from trueport.interface import Interface

if TYPE_CHECKING:
    import numpy as np
    import torch


class State(Protocol):
    """The tensors between two steps, in the runtime's own buffers; never changed in place."""

    def take(self, rows: torch.Tensor) -> State:
        """The state whose row i is this state's row ``rows[i]``."""

    def tensors(self) -> dict[str, torch.Tensor]:
        """What the state consists of, by name."""


class Session(Protocol):
    """One component in its runtime."""

    path: Path
    interface: Interface

    def empty_state(self, batch: Any, given: Mapping[str, Any] | None = None) -> Any:
        """The state before the first step, of so many rows; it may begin with what the encoder gave out.

        Where a state has no batch as its first axis, ``batch`` are the sizes of dimensions by name.
        """

    def sizes(self, state: Any) -> dict[str, int]:
        """Sizes of the dimensions that a state decides: ``batch_size``, ``past_sequence_length``."""

    def shorten(self, state: Any, count: int) -> Any:
        """The state without its last ``count`` tokens; RunError where a state cannot go back."""

    def advance(self, feeds: Mapping[str, torch.Tensor], state: Any) -> tuple[dict[str, torch.Tensor], Any]:
        """Plain inputs and a state of this session, or None, to plain outputs and the next state, without copies."""

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All inputs by name to all outputs by name."""

    def step(self, feeds: Mapping[str, np.ndarray], state: Any) -> tuple[dict[str, np.ndarray], Any]:
        """Plain inputs and a state to plain outputs and the next state."""
