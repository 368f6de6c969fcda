"""Models whose own ``generate`` reads all tokens anew, without their cache, once these are more than a limit.

Long Phi-3 rotates all positions by other factors past its original length: cached keys were rotated by those before.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicCache

from trueport.cache_names import cache_name
from trueport.roles.windows import rope_limits


class _Filled(DynamicCache):
    """A cache that says it holds so many tokens."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self.length = length

    def __len__(self) -> int:
        return 1  # one of no layers counts as none

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length


def reread_past(model: Any) -> int | None:
    """The number of tokens past which the model's ``generate`` drops a cache of no more; None where it keeps every cache.

    Args:
        model: a PreTrainedModel, with or without weights: only the method that prepares a step's inputs is called.
    """
    name = cache_name(model)
    if name is None or not model.can_generate():
        return None
    for limit in rope_limits(model.config):
        ids = torch.zeros((1, limit + 1), dtype=torch.long)
        given = {name: _Filled(limit), "attention_mask": torch.ones_like(ids), "next_sequence_length": 1}
        try:
            prepared = model.prepare_inputs_for_generation(ids, use_cache=True, **given)
        except Exception:  # a model's own code, asked outside of its generate; the proof compares what comes of it
            continue
        if prepared.get(name) is None:
            return limit
    return None
