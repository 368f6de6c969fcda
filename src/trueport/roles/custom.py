"""Any module: its inputs from a sample, its dimensions from trying, its state as declared or found."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from trueport.calls import Call, arguments_of
from trueport.errors import CaptureError, TrueportError
from trueport.interface import PAST, Dimension, Interface, StatePair, Tensor, terms
from trueport.roles.component import Component
from trueport.roles.dimensions import LENGTH, Dynamic, chosen, own_dimensions, restored
from trueport.roles.probing import FAILURES, Found, Probe, find_axes, longest, resized, smallest
from trueport.roles.states import Stateful, stateful
from trueport.roles.steps import splits

PRIMES = (3, 5, 7, 11, 13, 17, 19, 23)
"""Lengths to trace at, where the sample's are 0, 1, or equal to another dimension's."""
CLOSE = 1e-4
"""Relative difference below which two ways to compute one thing in float32 are the same way."""


class CustomModule(nn.Module):
    """The module behind named tensors."""

    def __init__(self, model: nn.Module, call: Call) -> None:
        super().__init__()
        self.model = model
        self.call = call

    def forward(self, **inputs: torch.Tensor) -> dict[str, torch.Tensor]:
        """Inputs by name to outputs by name."""
        from trueport.rewrite.lengths import lengths_kept

        traced = any(isinstance(size, torch.SymInt) for tensor in inputs.values() for size in tensor.shape)
        with lengths_kept() if traced else nullcontext():
            return self.call.run(self.model, inputs)


@dataclass(frozen=True)
class Described:
    """What export and proof need to know of a module.

    Attributes:
        component: to be captured.
        call: how it is called, the state included.
        first: how it is called before there is a state; None where it always takes one.
        time: the dimension along which two runs equal one; None where there is none.
        zeros: dimensions that the module takes at 0 too; whether a runtime does is seen when there is an artefact.
    """

    component: Component
    call: Call
    first: Call | None
    time: str | None
    zeros: tuple[str, ...] = ()


def describe(
    module: nn.Module, inputs: Any, dynamic: Dynamic | None = None, state: Mapping[Any, str] | None = None
) -> Described:
    """Find out how a module is called, which of its dimensions are dynamic within which bounds, and its state.

    Args:
        module: in eval mode.
        inputs: sample inputs, a tuple or a dict of tensors.
        dynamic: the axes to keep dynamic; all that can be by default.
        state: outputs to the inputs that they are at the next call; looked for by default.

    Raises:
        SourceError: the module does not take its inputs, or not what is declared of them.
        CaptureError: its state begins neither empty nor as zeros.
    """
    found = stateful(module, arguments_of(module, inputs), state)
    probe = Probe(lambda feeds: found.call.run(module, feeds))
    axes = find_axes(probe, found.feeds)
    names, bounds = chosen(dynamic, axes, found, probe)
    try:
        return _described(module, found, probe, axes, names, bounds)
    except CaptureError:
        # A cache of fixed length may run at any length too: then it begins as zeros of its own length, not as nothing.
        fixed = {number: label for number, label in names.items() if number not in own_dimensions(axes, found)}
        if fixed == names or dynamic is not None:
            raise
        try:
            return _described(module, found, probe, axes, fixed, bounds)
        except TrueportError:
            pass
        raise


def _described(
    module: nn.Module,
    found: Stateful,
    probe: Probe,
    axes: Found,
    names: Mapping[int, str],
    bounds: Mapping[str, tuple[int | None, int | None]],
) -> Described:
    """The description where these dimensions are dynamic."""
    axes = restored(axes, names, found.feeds, probe)
    interface = _interface(found, axes, names)
    interface = _ranged(module, probe, axes.feeds, interface, bounds)
    sizes = _trace_sizes(probe, axes.feeds, interface)
    feeds = at_sizes(axes.feeds, interface, sizes)
    interface = _with_state(module, found, interface, feeds, sizes)
    component = Component("model", "model", CustomModule(module, found.call), interface, sizes, feeds=feeds)
    time = splits(module, found.call, interface, feeds, sizes) if interface.state else None
    zeros = tuple(
        d.name
        for d in interface.dimensions
        if d.name in interface.fed
        and d.minimum == 1
        and d.name not in bounds
        and probe.runs(at_sizes(feeds, interface, sizes | {d.name: 0}))
    )
    return Described(component, found.call, found.first, time, zeros)


def at_sizes(
    feeds: Mapping[str, torch.Tensor], interface: Interface, sizes: Mapping[str, int]
) -> dict[str, torch.Tensor]:
    """The sample at other sizes."""
    return {tensor.name: resized(feeds[tensor.name], tensor.concrete(sizes)) for tensor in interface.inputs}


def _interface(found: Stateful, axes: Found, names: Mapping[int, str]) -> Interface:
    """Inputs and outputs, dimensions without bounds yet; outputs without shapes, which the capture finds."""

    def shape(name: str, tensor: torch.Tensor) -> tuple[int | str, ...]:
        parts = [
            tuple(names[number] for number in axes.axes.get((name, axis), ()) if number in names)
            for axis in range(tensor.ndim)
        ]
        return tuple(" + ".join(part) or size for part, size in zip(parts, tensor.shape, strict=True))

    inputs = [Tensor(n, str(t.dtype).removeprefix("torch."), shape(n, t)) for n, t in axes.feeds.items()]
    outputs = [Tensor(name, "float32", ()) for name in found.call.outputs if name is not None]
    used = dict.fromkeys(term for tensor in inputs for axis in tensor.shape for term in terms(axis))
    pairs = tuple(StatePair(given, gives, 0) for given, gives in found.pairs.items())
    return Interface(tuple(inputs), tuple(outputs), tuple(Dimension(name) for name in used), pairs)


def _ranged(
    module: nn.Module,
    probe: Probe,
    feeds: Mapping[str, torch.Tensor],
    interface: Interface,
    given: Mapping[str, tuple[int | None, int | None]],
) -> Interface:
    """The interface with the range of each dimension, the others at lengths that the module took already."""
    plain = interface.fed
    usual = {d.name: _length_of(feeds, interface, d.name) for d in interface.dimensions}
    own = {size for tensor in (*module.parameters(), *module.buffers()) for size in tensor.shape}
    ranged = []
    for dimension in interface.dimensions:

        def runs(length: int, name: str = dimension.name) -> bool:
            return probe.runs(at_sizes(feeds, interface, usual | {name: length}))

        low, high = given.get(dimension.name, (None, None))
        # Some kernels of ONNX Runtime refuse rows and tokens of number 0 (modules.py asks them); only a state begins so.
        shown = 1 if dimension.name in plain else 0
        minimum = smallest(runs, shown) if low is None else low
        if minimum is None or (dimension.name not in plain and minimum > 0):
            raise CaptureError(
                f"{type(module).__name__} refuses a {dimension.name} of {shown}: {probe.refusal}",
                "A state must begin with length 0: write the forward so that an empty one and None mean the same.",
            )
        maximum = longest(probe, runs, usual[dimension.name], own) if high is None or high > 2**31 else high
        because = "" if maximum is None else (probe.refusal if high is None else "dynamic=")
        ranged.append(Dimension(dimension.name, minimum, maximum, because))
    return replace(interface, dimensions=tuple(ranged))


def _length_of(feeds: Mapping[str, torch.Tensor], interface: Interface, name: str) -> int:
    for tensor in interface.inputs:
        if name in tensor.shape:
            return feeds[tensor.name].shape[tensor.shape.index(name)]
    raise KeyError(name)


def _trace_sizes(probe: Probe, feeds: Mapping[str, torch.Tensor], interface: Interface) -> dict[str, int]:
    """Different lengths of 2 and more: equal ones would hide which is which."""
    sizes: dict[str, int] = {}
    for dimension in interface.dimensions:
        usual = _length_of(feeds, interface, dimension.name)
        for length in (usual, *PRIMES):
            allowed = dimension.minimum <= length <= (dimension.maximum or length)
            if length > 1 and allowed and length not in sizes.values():
                sizes[dimension.name] = length
                break
        else:
            sizes[dimension.name] = usual
    if probe.runs(at_sizes(feeds, interface, sizes)):
        return sizes
    return {d.name: _length_of(feeds, interface, d.name) for d in interface.dimensions}


def _with_state(
    module: nn.Module, found: Stateful, interface: Interface, feeds: dict[str, torch.Tensor], sizes: dict[str, int]
) -> Interface:
    """The interface with the axis along which each state grows, and how it begins; checked where it may be absent."""
    if not found.pairs:
        return interface
    with torch.no_grad():
        outputs = found.call.run(module, feeds)
    plain = interface.fed
    pairs, grown, tensors = [], dict[str, str](), {}
    for pair in interface.state:
        tensor = interface.input(pair.input)
        free = [axis for axis, name in enumerate(tensor.shape) if isinstance(name, str) and name not in plain]
        axis = free[0] if free else 0
        pairs.append(StatePair(pair.input, pair.output, axis, "empty" if free else "zeros"))
        shape = outputs[pair.output].shape
        if len(free) == 1 and LENGTH in sizes and shape[axis] == feeds[pair.input].shape[axis] + sizes[LENGTH]:
            grown[pair.input] = str(tensor.shape[axis])
        elif not free and tuple(shape) != tuple(feeds[pair.input].shape):
            raise CaptureError(
                f"The state {pair.input} of shape {tuple(feeds[pair.input].shape)} came back as {tuple(shape)}",
                "Give a sample state of the form that the module gives out.",
            )
    interface = replace(interface, state=tuple(pairs))
    renamed = dict.fromkeys(set(grown.values()), PAST) if len(set(grown.values())) == 1 else {}
    if renamed and set(grown) == set(interface.state_inputs):
        interface = _renamed(interface, renamed)
        for old, new in renamed.items():
            sizes[new] = sizes.pop(old)
        tensors = {p.output: _grown(interface.input(p.input), p.axis) for p in interface.state}
        interface = interface.with_outputs(replace(t, shape=tensors.get(t.name, t.shape)) for t in interface.outputs)
    _check_beginning(module, found, interface, feeds)
    least = {d.name: max(d.minimum, 1) for d in interface.dimensions if d.name in interface.fed}
    few, first = at_sizes(feeds, interface, sizes | least), found.first
    if first is not None and Probe(lambda given: first.run(module, given)).runs(few):
        _check_beginning(module, found, interface, few)  # a state of zeros may be told from none by few tokens alone
    return interface


def _grown(tensor: Tensor, axis: int) -> tuple[int | str, ...]:
    return tuple(f"{PAST} + {LENGTH}" if index == axis else size for index, size in enumerate(tensor.shape))


def _renamed(interface: Interface, names: Mapping[str, str]) -> Interface:
    def rename(axis: int | str) -> int | str:
        return axis if isinstance(axis, int) else " + ".join(names.get(term, term) for term in terms(axis))

    return replace(
        interface,
        inputs=tuple(replace(t, shape=tuple(map(rename, t.shape))) for t in interface.inputs),
        dimensions=tuple(replace(d, name=names.get(d.name, d.name)) for d in interface.dimensions),
    )


def first_state(interface: Interface, sizes: Mapping[str, int]) -> dict[str, torch.Tensor]:
    """The state before the first call: zeros, of length 0 along the dimensions that only a state has."""
    tensors = {}
    for pair in interface.state:
        tensor = interface.input(pair.input)
        shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in tensor.shape]
        tensors[pair.input] = torch.zeros(shape, dtype=getattr(torch, tensor.dtype))
    return tensors


def _check_beginning(
    module: nn.Module, found: Stateful, interface: Interface, feeds: Mapping[str, torch.Tensor]
) -> None:
    """The call without a state is the call with an empty one, or with zeros."""
    if found.first is None:
        return
    state = set(interface.state_inputs)
    sizes = {
        name: size
        for tensor in interface.plain_inputs
        for name, size in zip(tensor.shape, feeds[tensor.name].shape, strict=True)
        if isinstance(name, str) and len(terms(name)) == 1
    }
    first = first_state(interface, sizes)
    plain = {name: tensor for name, tensor in feeds.items() if name not in state}
    kinds = " and ".join(dict.fromkeys(pair.initial for pair in interface.state))
    try:
        with torch.no_grad():
            wanted, got = found.first.run(module, plain), found.call.run(module, plain | first)
    except FAILURES as error:
        raise CaptureError(f"{type(module).__name__} refuses a first state that is {kinds}: {error}") from error
    for name, value in wanted.items():
        if not same(value, got[name]):
            raise CaptureError(
                f"{type(module).__name__} without its state gives another {name} than with one that is {kinds}",
                "One graph serves both where None means a state of length 0, or of zeros.",
            )


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two results are one, but for rounding."""
    if one.shape != other.shape:
        return False
    if not one.is_floating_point():
        return bool(torch.equal(one, other))
    scale = float(one.abs().nan_to_num(0.0, 0.0).max()) if one.numel() else 0.0
    return bool(torch.allclose(one, other, rtol=CLOSE, atol=CLOSE * max(scale, 1e-6), equal_nan=True))
