"""A run in several steps: plain inputs cut along a dimension, the state handed on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from trueport.calls import Call
from trueport.interface import Interface, terms
from trueport.roles.probing import FAILURES

Step = Callable[[dict[str, Any], Any], tuple[dict[str, Any], Any]]
"""Plain inputs and a state to plain outputs and the next state."""


def cut(
    interface: Interface, feeds: Mapping[str, Any], time: str, start: int, stop: int, state: Any = None
) -> dict[str, Any]:
    """The plain inputs of the steps from ``start`` to ``stop`` along ``time``.

    A sum with it, such as a mask over past and new, reaches back as far as the state does.
    """
    lengths = state_sizes(interface, state)
    pieces = {}
    for tensor in interface.plain_inputs:
        index: list[slice] = []
        for axis in tensor.shape:
            parts = terms(axis)
            past = sum(lengths.get(part, 0) for part in parts if part != time)
            index.append(slice(start - past, stop) if time in parts else slice(None))
        pieces[tensor.name] = feeds[tensor.name][tuple(index)]
    return pieces


def state_sizes(interface: Interface, state: Any) -> dict[str, int]:
    """Sizes of the dimensions that a state's tensors have; none before the first step."""
    tensors = {} if state is None else state if isinstance(state, Mapping) else state.tensors()
    return {
        axis: int(size)
        for name, tensor in tensors.items()
        for axis, size in zip(interface.input(name).shape, tensor.shape, strict=True)
        if isinstance(axis, str)
    }


def run_steps(
    interface: Interface, feeds: Mapping[str, Any], time: str, chunks: Sequence[int], step: Step, state: Any
) -> tuple[dict[str, list[Any]], Any]:
    """The outputs of each step by name, and the last state."""
    pieces: dict[str, list[Any]] = {}
    start = 0
    for size in chunks:
        outputs, state = step(cut(interface, feeds, time, start, start + size, state), state)
        for name, value in outputs.items():
            pieces.setdefault(name, []).append(value)
        start += size
    return pieces, state


def joined(pieces: Mapping[str, list[Any]], whole: Mapping[str, Any]) -> dict[str, Any]:
    """Steps put together as the whole is: along the one axis that adds up, or the last where none does."""
    together = {}
    for name, parts in pieces.items():
        parts = [torch.as_tensor(part) for part in parts]
        shape = tuple(whole[name].shape)
        axis = next((i for i in range(len(shape)) if _adds_up(parts, shape, i)), None)
        together[name] = parts[-1] if axis is None else torch.cat(parts, axis)
    return together


def _adds_up(parts: Sequence[torch.Tensor], shape: tuple[int, ...], axis: int) -> bool:
    rest = all(part.shape[:axis] + part.shape[axis + 1 :] == shape[:axis] + shape[axis + 1 :] for part in parts)
    return rest and sum(part.shape[axis] for part in parts) == shape[axis] and len(parts) > 1


def splits(
    module: nn.Module, call: Call, interface: Interface, feeds: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> str | None:
    """The dimension of the plain inputs along which the module's two runs equal its one; None where there is none."""
    from trueport.roles.custom import first_state, same
    from trueport.roles.dimensions import BATCH

    outputs = {tensor.name for tensor in interface.plain_outputs}
    plain = interface.fed

    def step(given: dict[str, Any], state: Any) -> tuple[dict[str, Any], Any]:
        results = call.run(module, given | state)
        following = {pair.input: results[pair.output] for pair in interface.state}
        return {name: results[name] for name in outputs}, following

    for time in sorted(plain - {BATCH}):
        if sizes[time] < 2:
            continue
        rest = {name: size for name, size in sizes.items() if name in plain}
        given = cut(interface, feeds, time, 0, sizes[time])  # a mask over past and new, without the past
        try:
            with torch.no_grad():
                whole, _ = step(given, first_state(interface, rest))
                chunks = [1, sizes[time] - 1]
                parts, _ = run_steps(interface, given, time, chunks, step, first_state(interface, rest))
        except FAILURES:
            continue
        together = joined(parts, whole)
        if all(same(whole[name], together[name]) for name in outputs):
            return time
    return None
