"""Recurrences over tokens as loops: each operator of ``patches.recurrences`` becomes one scan."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx

from trueport.patches.recurrences import Step, channels_step, delta_step, space_step
from trueport.targets.executorch.formulas import Call, replace

aten = torch.ops.aten


STEPS: dict[str, tuple[Step, str, str, str]] = {
    "delta_rule": (delta_step, "query key value decay beta", "decay", ""),
    "delta_rule_by_channels": (delta_step, "query key value decay beta", "decay", ""),
    "state_space": (space_step, "value decay given read", "decay", ""),
    "state_space_by_channels": (channels_step, "x time given read", "", "rate"),
}
"""By operator: its step, its arguments (batch, length, ...), that of them which is a logarithm, and what tokens share."""


def write_recurrences(module: torch.fx.GraphModule) -> None:
    """Put a scan in the place of each recurrence, in place."""
    graph = module.graph
    for node in list(graph.nodes):
        target: Any = node.target
        if node.op != "call_function" or getattr(target, "namespace", "") != "trueport":
            continue
        found = STEPS.get(target._schema.name.partition("::")[2])
        if found is not None:
            named = dict(zip((argument.name for argument in target._schema.arguments), node.args, strict=True))
            replace(graph, node, lambda call, *_, found=found, named=named: _scan(module, call, named, *found))


def _scan(
    module: torch.fx.GraphModule,
    call: Call,
    given: Mapping[str, Any],
    step: Step,
    tokens: str,
    logarithm: str,
    shared: str,
) -> tuple[Any, Any]:
    """The outputs, (batch, length, ...), and the last state."""
    rows = {name: call(aten.transpose.int, given[name], 0, 1) for name in tokens.split()}
    inputs = [call(aten.exp.default, tensor) if name == logarithm else tensor for name, tensor in rows.items()]
    state = call(aten.clone.default, given["state"])
    rest = [given[name] for name in shared.split()]
    values: list[torch.Tensor] = [node.meta["val"] for node in (state, *inputs, *rest)]
    mode: Any = values[0].fake_mode  # type: ignore[attr-defined]
    with torch.no_grad(), mode, enable_python_dispatcher():
        one = [values[0], *(value[0] for value in values[1 : len(inputs) + 1]), *values[len(inputs) + 1 :]]
        body = make_fx(lambda *token: tuple(result.clone() for result in step(*token)))(*one)
        output = body.graph.output_node().args[0][1].meta["val"]  # type: ignore[index,union-attr]
        results = [values[0].clone(), output.new_empty(values[1].shape[0], *output.shape)]
    place = f"recurrence_{sum(1 for _ in module.children())}"
    module.add_submodule(place, body)
    scan = state.graph.call_function(torch.ops.higher_order.scan, (state.graph.get_attr(place), [state], inputs, rest))
    scan.meta.update({**state.meta, "val": results})
    last, outputs = (call(operator.getitem, scan, number) for number in range(2))
    return call(aten.transpose.int, outputs, 0, 1), last
