"""What the proof looks at in a repaired layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

if TYPE_CHECKING:
    from trueport.graphs.audit.sites import Site


@dataclass(frozen=True)
class Probe:
    """One repaired layer, as it was and as it is.

    Attributes:
        name: the node that was replaced.
        module: its module.
        original: a copy of that node, for a graph of its own.
        inputs: names, in the repaired graph, of what that node read; empty strings where it read nothing.
        output: name of what replaces its first output.
        terms: of a softmax, its masks: (name of the value, whether true hides; None for a term that is added).
        mask: of an operator, the name of the mask that is now used.
        constants: of an operator, its stored inputs by position.
        double: whether scores are computed in float64.
        fill: the weakest number, as it arrives, by which a term hides, without its sign; 0 where there are no terms.
    """

    name: str
    module: str
    original: ir.Node
    inputs: tuple[str, ...]
    output: str
    terms: tuple[tuple[str, bool | None], ...] = ()
    mask: str = ""
    constants: dict[int, np.ndarray] = field(default_factory=dict)
    double: bool = False
    fill: float = 0.0

    @property
    def watched(self) -> list[str]:
        """Values of the repaired graph that the proof reads."""
        found = [*self.inputs, self.output, *(name for name, _ in self.terms), self.mask]
        return [name for name in dict.fromkeys(found) if name]

    def attribute(self, name: str, default: Any) -> Any:
        """An attribute of the node that was replaced."""
        attribute = self.original.attributes.get(name)
        return default if attribute is None else attribute.value


def weakest(site: Site) -> float:
    """The fill, without its sign, of the term that hides least; 0 without terms."""
    return min((abs(term.fill * term.factor) for term in site.terms), default=0.0)


def detached(node: ir.Node, names: list[str]) -> ir.Node:
    """A copy of a node that reads values of these names, outside of any graph."""
    inputs = [ir.Value(name=name) if name else None for name in names]
    copy = ir.Node(node.domain, node.op_type, inputs, list(node.attributes.values()), num_outputs=len(node.outputs))
    copy.name = node.name
    for index, value in enumerate(copy.outputs):
        value.name = f"original_{index}"
    return copy
