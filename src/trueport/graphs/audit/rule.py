"""A rule: one kind of mistake, declared in one module."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.view import View


@dataclass(frozen=True)
class Rule:
    """What to look for.

    Attributes:
        id: its name in reports; docs/rules/<id>.md explains it.
        title: the mistake, in a few words.
        mend: what to do, one sentence.
        check: gives the findings of a graph.
        repairable: whether ``trueport repair`` mends it.
    """

    id: str
    title: str
    mend: str
    check: Callable[[Rule, View], Iterable[Finding]]
    repairable: bool = False

    def finding(
        self, view: View, node: ir.Node | None, message: str, *, severity: str = "error", at: str = ""
    ) -> Finding:
        """A finding of this rule.

        Args:
            view: the graph.
            node: the node at fault; None where it is an input.
            message: what is wrong, without a full stop.
            severity: see ``SEVERITIES``.
            at: the input's name, for a finding without a node.
        """
        from trueport.graphs.audit.report import Finding

        where = at if node is None else place(node)
        module = "" if node is None else view.module(node)
        return Finding(self.id, severity, where, module, message, self.mend, self.repairable)


def place(node: ir.Node) -> str:
    """How reports call a node: by its name, else by what it gives."""
    return node.name or node.outputs[0].name or node.op_type
