"""What a model says behind a prompt, each token the likeliest."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from trueport.proof.inputs import Batch


def continued(
    forward: Callable[[Batch], Mapping[str, np.ndarray]], config: Any, batch: Batch, new: int
) -> tuple[Batch, np.ndarray]:
    """The batch with the likeliest tokens behind it, and which of these come before an end or are one."""
    ends = np.atleast_1d(getattr(config, "eos_token_id", None) or [])
    told = batch if batch.target is None else replace(batch, target=batch.target[:, :1])
    going, counted = np.ones(batch.size, dtype=bool), []
    for _ in range(new):
        token = forward(told)["logits"][:, -1].argmax(-1)[:, None]
        counted.append(going)
        going = going & ~np.isin(token[:, 0], ends)
        if told.target is not None:
            told = replace(told, target=np.concatenate([told.target, token], axis=1))
        else:
            mask = np.concatenate([told.mask, np.ones_like(told.mask[:, :1])], axis=1)
            told = replace(told, ids=np.concatenate([told.ids, token], axis=1), mask=mask)
        if not going.any():
            break
    return told, np.stack(counted, axis=1)
