"""What every target says of a quantisation: what it did, and what the result must keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Gate:
    """What a quantised artefact must keep.

    Attributes:
        agreement: share of positions whose likeliest entry is the original's, at the least.
        divergence: mean Kullback-Leibler divergence of the artefact's distribution from the original's, nats, at the
            most.
        distance: mean relative distance of vectors that are no distribution, such as hidden states, at the most.
        generated: share of the original's own greedy continuations of prompts at whose tokens the artefact's choice is
            the original's, both given the same tokens so far, at the least.
        because: where these numbers come from.
    """

    agreement: float
    divergence: float
    distance: float
    generated: float
    because: str


def loosest(gates: Mapping[str, Gate], forms: Iterable[str]) -> Gate:
    """What layers in these forms are held to: where there are several, the gate of the one that is allowed most.

    Raises:
        ValueError: there is no form.
    """
    return max((gates[form] for form in forms), key=lambda gate: gate.divergence)


@dataclass(frozen=True)
class Quantized:
    """What was quantised.

    Attributes:
        kind: one of the target's gates.
        layers: paths of the quantised layers in the model.
        left_in_float: the other modules with matrices of weights, embeddings apart, and why they stayed.
        gate: what the artefact is held to.
        extra: what else the kind has to tell, for the manifest.
    """

    kind: str
    layers: tuple[str, ...]
    left_in_float: dict[str, str]
    gate: Gate
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As the manifest stores it."""
        told = {"kind": self.kind, "layers": list(self.layers), "left_in_float": self.left_in_float}
        return {**told, **self.extra, "gate": asdict(self.gate)}
