"""The tokens that a row has to end in: classifiers of BART and T5 read the state at the end's, and refuse rows without."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from trueport.interface import Interface
from trueport.roles.component import sample
from trueport.roles.probing import FAILURES

MOST = 3
"""Tokens of an ending that are tried."""


def ended(model: Any, interface: Interface, length: int) -> Interface:
    """The interface with the ending that the model asks for; as it is where any tokens do, or none of the endings tried.

    Args:
        model: in eval mode.
        interface: of its inputs, of which the first is ``input_ids``.
        length: tokens, of which it takes as many.
    """
    sizes = {"batch_size": 2, "sequence_length": length}
    for ending in ((), *_endings(model.config)):
        tried = replace(interface, ending=ending)
        try:
            with torch.no_grad():
                model(**sample(tried, sizes))
        except FAILURES:
            continue
        return tried
    return interface


def _endings(config: Any) -> Iterator[tuple[int, ...]]:
    """Each of the tokens that mark the end or a boundary, once and repeated."""
    tokens = dict.fromkeys(getattr(config, f"{name}_token_id", None) for name in ("eos", "sep"))
    for token in tokens:
        if isinstance(token, int):
            yield from ((token,) * count for count in range(1, MOST + 1))
