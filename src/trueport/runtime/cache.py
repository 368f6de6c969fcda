"""transformers' cache protocol over a session's own buffers."""

from __future__ import annotations

from typing import Any, NoReturn

import torch
from transformers.cache_utils import Cache

from trueport.errors import RunError
from trueport.interface import PAST
from trueport.runtime.protocol import Session, State


class RuntimeCache(Cache):
    """The state of one decoder between steps.

    The tensors stay in the runtime's buffers: what one step gives out, the next one reads. ``tensors`` are views.

    Attributes:
        state: the session's state; None before the first step, when even the batch size is open.
    """

    def __init__(self, session: Session, state: State | None = None) -> None:
        super().__init__(layers=[])
        self.session = session
        self.state = state

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Views of the cached tensors by input name; empty before the first step."""
        return {} if self.state is None else self.state.tensors()

    def __repr__(self) -> str:
        return f"RuntimeCache({self.session.path.name}, length={self.get_seq_length()})"

    def __len__(self) -> int:
        """Number of layers."""
        interface = self.session.interface
        names = [*interface.state_inputs, *(tensor.name for tensor in interface.kept)]
        return len({name.rpartition(".")[0] for name in names if ".encoder." not in name})

    def __deepcopy__(self, memo: dict[int, Any]) -> RuntimeCache:
        """A cache that goes its own way from here: states are never changed in place, so the buffers are shared."""
        return RuntimeCache(self.session, self.state)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Tokens in the cache, equally many in every layer."""
        return 0 if self.state is None else self.session.sizes(self.state).get(PAST, 0)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """Tokens that the model has positions for; -1 where nothing bounds them."""
        maximum = next((d.maximum for d in self.session.interface.dimensions if d.name == PAST), None)
        return -1 if maximum is None else maximum + 1

    def get_mask_sizes(self, query_length: int, layer_idx: int) -> tuple[int, int]:
        """Length and offset of the keys that a mask covers."""
        return self.get_seq_length() + query_length, 0

    @property
    def batch_size(self) -> int:
        """Rows in the cache; -1 before the first step."""
        return -1 if self.state is None else self.session.sizes(self.state).get("batch_size", -1)

    @property
    def is_compileable(self) -> bool:
        """Never: the runtime has compiled already."""
        return False

    @property
    def is_linear(self) -> list[bool]:
        """Of no layer: what it keeps grows with the tokens."""
        # transformers' own reads ``layers``, of which there are none here: ``generate`` would take all for linear, and give
        # a cache that goes on the whole prompt once more.
        return [False] * len(self)

    @property
    def is_initialized(self) -> bool:
        """Whether a step has filled the cache."""
        return self.state is not None

    @property
    def is_croppable(self) -> bool:
        """Whether ``crop`` undoes steps; a recurrent state cannot go back."""
        interface = self.session.interface
        return bool(interface.kept) or all(pair.initial == "empty" for pair in interface.state)

    def reset(self) -> None:
        """Forget everything."""
        self.state = None

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Row i becomes what row ``beam_idx[i]`` was."""
        if not torch.equal(beam_idx, torch.arange(len(beam_idx))):  # beams often keep their order
            self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these rows, in this order; a boolean mask will do."""
        if self.state is not None:
            self.state = self.state.take(indices.nonzero()[:, 0] if indices.dtype == torch.bool else indices.long())

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row ``repeats`` times."""
        if self.state is not None:
            self.batch_select_indices(torch.arange(self.batch_size).repeat_interleave(repeats))

    def crop(self, tokens_to_remove: int) -> None:
        """Drop the last ``-tokens_to_remove`` tokens: transformers counts them below zero."""
        if tokens_to_remove > 0:
            raise RunError(f"crop takes the number of tokens to drop as a negative number, not {tokens_to_remove}")
        if tokens_to_remove == 0 or self.state is None:
            return
        self.state = self.session.shorten(self.state, -tokens_to_remove)

    def update(self, *args: Any, **kwargs: Any) -> NoReturn:
        """The graph itself appends to the cache."""
        raise RunError("A RuntimeCache is updated by the graph, not from outside")
