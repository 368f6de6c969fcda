"""Recurrences over tokens as loops: each operator of ``patches.recurrences`` becomes one scan."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch.fx.experimental.proxy_tensor import make_fx

from trueport.patches import recurrences  # noqa: F401  (registers the operators)
from trueport.targets.executorch.formulas import Call, replace

Step = Callable[..., tuple[torch.Tensor, torch.Tensor]]
"""The state, one token of each input, and what all tokens share, to the next state and the token's output."""
aten = torch.ops.aten


def _delta(
    state: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    kept: torch.Tensor,
    beta: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    state = state * kept.unsqueeze(-1)
    told = (key.unsqueeze(-2) @ state).squeeze(-2)
    state = state + key.unsqueeze(-1) * ((value - told) * beta.unsqueeze(-1)).unsqueeze(-2)
    return state, (query.unsqueeze(-2) @ state).squeeze(-2)


def _space(
    state: torch.Tensor, value: torch.Tensor, kept: torch.Tensor, given: torch.Tensor, read: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    state = state * kept.unsqueeze(-1) + value.unsqueeze(-1) * given.unsqueeze(-2)
    return state, (state @ read.unsqueeze(-1)).squeeze(-1)


def _channels(
    state: torch.Tensor,
    x: torch.Tensor,
    time: torch.Tensor,
    given: torch.Tensor,
    read: torch.Tensor,
    rate: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    new = (time * x).unsqueeze(-1) * given.unsqueeze(-2)
    state = state * (time.unsqueeze(-1) * rate).exp() + new
    return state, (state @ read.unsqueeze(-1)).squeeze(-1)


STEPS: dict[str, tuple[Step, str, str, str]] = {
    "delta_rule": (_delta, "query key value decay beta", "decay", ""),
    "delta_rule_by_channels": (_delta, "query key value decay beta", "decay", ""),
    "state_space": (_space, "value decay given read", "decay", ""),
    "state_space_by_channels": (_channels, "x time given read", "", "rate"),
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
