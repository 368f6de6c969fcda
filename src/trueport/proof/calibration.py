"""The inputs that a quantisation is made on, never those that judge it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trueport.interface import Interface
from trueport.proof.inputs import Batch, Inputs, Limits, left, right

SEED = 4711
"""Not the proof's: a scale must not be chosen on the inputs that judge it."""
BATCHES = 8
"""Ragged padded batches per program; the ranges of linear layers' activations hardly grow after the first few."""


@dataclass(frozen=True)
class Original:
    """What calibration must know of the model: its config and its role."""

    config: Any
    role: str


def batches(interfaces: Mapping[str, Interface], original: Original) -> list[Batch]:
    """Rows padded left for a decoder, right otherwise, as the proof draws them."""
    first = interfaces.get("encoder", next(iter(interfaces.values())))
    last = interfaces.get("decoder", first)
    side = "encoder_sequence_length" if original.role == "seq2seq" else "sequence_length"
    bounds = {dimension.name: dimension for dimension in first.dimensions}
    bounds |= {d.name: d for d in last.dimensions if d.name != side}
    maximum = {name: dimension.maximum for name, dimension in bounds.items()}
    shortest = max(bounds[side].minimum, 1) if side in bounds else 1
    limits = Limits(maximum.get(side), maximum.get("sequence_length"), shortest, maximum.get("batch_size"))
    source = first.inputs[0]
    features = tuple(source.shape[1:]) if len(source.shape) > 2 else None
    inputs = Inputs(
        original.config, original.role, SEED, limits, features=features,  # type: ignore[arg-type]
        typed=first.has_input("token_type_ids"),
    )  # fmt: skip
    pad = left if original.role == "decoder" else right
    length = inputs.fits(24)
    pads = [0, length // 3] if first.has_input("attention_mask") else [0, 0]
    return [inputs.draw(f"calibration {index}", pad(length, pads), target=12) for index in range(BATCHES)]
