"""Squeezes of axes whose length stays open, which a graph would drop at length 1."""

from __future__ import annotations

from typing import Any

import torch

SQUEEZES = (torch.ops.aten.squeeze.default, torch.ops.aten.squeeze.dim, torch.ops.aten.squeeze.dims)


def keep_open_axes(program: torch.export.ExportedProgram) -> None:
    """A squeeze that may meet an open axis names those that have length 1 at every size, or is taken out.

    torch takes an open length for another than 1 and traces on with that axis, but leaves ``x.squeeze()`` as it is: at a
    batch of 1 it would drop the batch (MBart's start tokens).
    """
    for graph in program.graph_module.modules():
        if not isinstance(graph, torch.fx.GraphModule):
            continue
        for node in list(graph.graph.nodes):
            if node.op == "call_function" and node.target in SQUEEZES and "val" in node.args[0].meta:
                _name_axes(node)
        graph.recompile()


def _name_axes(node: torch.fx.Node) -> None:
    source: Any = node.args[0]
    shape = source.meta["val"].shape
    given: Any = node.args[1] if len(node.args) > 1 else range(len(shape))
    asked = [given] if isinstance(given, int) else list(given)
    if all(isinstance(shape[axis], int) for axis in asked):
        return
    axes = [axis for axis in asked if isinstance(shape[axis], int) and shape[axis] == 1]
    if axes:
        node.target, node.args = torch.ops.aten.squeeze.dims, (source, axes)
    else:
        node.replace_all_uses_with(source)
        node.graph.erase_node(node)
