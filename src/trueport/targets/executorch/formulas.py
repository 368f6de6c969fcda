"""Formulas of a node's inputs in a node's place."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch

Call = Callable[..., Any]
"""Adds a call of an operator and gives its node."""


def replace(graph: torch.fx.Graph, node: torch.fx.Node, formula: Callable[..., Any]) -> None:
    """Put a formula of a node's inputs in its place; shapes and dtypes are found on fake tensors.

    Args:
        graph: that the node is in.
        node: to be replaced.
        formula: takes what adds a call, then the node's inputs; gives a node, or several for several results, or None
            where all stays as it is.
    """

    def value_of(argument: Any) -> Any:
        return argument.meta["val"] if isinstance(argument, torch.fx.Node) else argument

    value = node.meta["val"]
    mode = (value[0] if isinstance(value, (tuple, list)) else value).fake_mode

    def call(target: Any, *args: Any, **options: Any) -> torch.fx.Node:
        made = graph.call_function(target, args, options)
        values = [[value_of(entry) for entry in arg] if isinstance(arg, list) else value_of(arg) for arg in args]
        made.meta.update(node.meta)
        with mode:
            made.meta["val"] = target(*values, **options)
        return made

    with graph.inserting_before(node):
        result = formula(call, *node.args)
    if result is None:
        return
    if isinstance(result, tuple):
        for user in list(node.users):
            assert user.target is operator.getitem
            user.replace_all_uses_with(result[user.args[1]])  # type: ignore[index]
            graph.erase_node(user)
    else:
        node.replace_all_uses_with(result)
    graph.erase_node(node)
