"""Slices of everything inside the bodies of loops, which torch 2.13 cannot decompose there, taken out."""

from __future__ import annotations

import torch

END = 2**63 - 1
"""How torch writes the end of ``x[:]``."""


def drop_idle_slices(program: torch.export.ExportedProgram) -> None:
    """``x[:, None]`` is traced as a slice of all rows and an unsqueeze: in a scan's body only the latter stays.

    Decomposed over a symbolic length the former becomes arithmetic on symbols, which scan takes for outputs.
    """
    for name, graph in program.graph_module.named_modules():
        if not name or not isinstance(graph, torch.fx.GraphModule):
            continue
        for node in list(graph.graph.nodes):
            if node.op != "call_function" or node.target is not torch.ops.aten.slice.Tensor or node.kwargs:
                continue
            given = list(node.args[2:])
            start, end, step = given + [None] * (3 - len(given))
            if start in (None, 0) and end in (None, END) and step in (None, 1):
                node.replace_all_uses_with(node.args[0])
                graph.graph.erase_node(node)
        graph.recompile()
