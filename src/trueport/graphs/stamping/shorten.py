"""A component captured with three repetitions of its layers, and what it takes to put the others back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from trueport.graphs.stamping import RefusedError
from trueport.graphs.stamping.stacks import Stack, stacks_of, unlike
from trueport.graphs.stamping.trace import Trace, Twins, check_short, traced, twins_of
from trueport.interface import Interface, Tensor
from trueport.roles.component import Component
from trueport.weights.linked import is_fake

if TYPE_CHECKING:
    from trueport.capture import Captured

FAR = 4096
"""Tokens by which inputs are longer where layers are held against each other once more."""


@dataclass(frozen=True)
class Stamping:
    """What a shortened program lacks.

    Attributes:
        stack: its layers.
        twins: the state of each repetition, by its number.
        component: the whole one.
        plainly: captures the whole one after all, for the reason that it is given.
    """

    stack: Stack
    twins: tuple[Twins, ...]
    component: Component
    plainly: Callable[[str], Captured]

    def interface(self, short: Interface) -> Interface:
        """The whole one's, with the dtypes and shapes that the shortened program computed."""
        known = {tensor.name: tensor for tensor in short.outputs}
        second = {other: one for twin in self.twins for one, other in twin.outputs.items()}
        outputs = []
        for tensor in self.component.interface.outputs:
            found = known[second.get(tensor.name, tensor.name) if tensor.name not in known else tensor.name]
            outputs.append(replace(found, name=tensor.name))
        return self.component.interface.with_outputs(outputs)


def captured(component: Component, config: Any, tell: Callable[[str], None], *, stamp: bool) -> Captured:
    """The component's program: a shortened one where its layers repeat and that spares enough, else the whole.

    Args:
        component: what to capture.
        config: the model's.
        tell: told why layers are traced one by one where they are many.
        stamp: whether anything may be left out.
    """
    from trueport.capture import capture

    def plainly(reason: str = "") -> Captured:
        if reason:
            tell(f"capture {component.name}: every layer is traced, because {reason}")
        return capture(component)

    stacks = stacks_of(component.module, config) if stamp else []
    if not stacks:
        path = unlike(component.module) if stamp else ""
        return plainly(f"the layers of {path} do not repeat, or not often enough" if path else "")
    try:
        stack, twins, trace = _chosen(component, stacks)
        short = _short(component, stack, twins)
        with shortened(component.module, stack):
            check_short(traced(short, [stack]), trace, stack)
            found = capture(short)
    except RefusedError as refused:
        return plainly(str(refused))
    except Exception as error:  # the whole model may do, or tells its own error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:160]
        return plainly(f"it cannot be traced without some of its layers ({reason})")
    return replace(found, stamping=Stamping(stack, tuple(twins), component, plainly))


def _chosen(component: Component, stacks: Sequence[Stack]) -> tuple[Stack, list[Twins], Trace]:
    """The longest stack that runs in this component; an encoder's layers are no part of its decoder's graph."""
    trace: Trace = traced(component, stacks)
    running = [stack for stack in stacks if trace.ends[stack.path]]
    if not running:
        raise RefusedError("none of its layers runs")
    twins, far = twins_of(component, running[0], trace), _far(component)
    if far is not None:  # a layer may ask how long its input is
        try:
            long = traced(far, running[:1], valued=False)
        except RefusedError:  # what has values may need them
            if is_fake(component.module):
                raise
        else:
            twins_of(far, running[0], long)
    return running[0], twins, trace


def _far(component: Component) -> Component | None:
    """The component with long inputs; None where these are given, or are bounded."""
    if component.feeds is not None:
        return None
    free = {dimension.name for dimension in component.interface.dimensions if dimension.maximum is None}
    grown = free & {"sequence_length", "encoder_sequence_length"}  # a long past would be memory
    sizes = {name: size + FAR * (name in grown) for name, size in component.sizes.items()}
    return replace(component, sizes=sizes) if sizes != component.sizes else None


@contextmanager
def shortened(module: nn.Module, stack: Stack) -> Iterator[None]:
    """Within, the layers that are left out are not there; the others keep their names and numbers."""
    container = vars(module.get_submodule(stack.path))
    whole = container["_modules"]
    absent = {stack.keys[index] for index in stack.left_out}
    container["_modules"] = {key: layer for key, layer in whole.items() if key not in absent}
    try:
        yield
    finally:
        container["_modules"] = whole


def of_each_layer(model: nn.Module, config: Any, run: Callable[[], list[Any]]) -> list[Any]:
    """What ``run`` finds of each layer by running a model, where it has no weights with fewer layers: shapes cost time.

    Args:
        model: the model that ``run`` runs.
        config: the model's.
        run: gives an entry for each layer; None for one that did not run.
    """
    for stack in stacks_of(model, config) if is_fake(model) else []:
        try:
            with shortened(model, stack):
                found = run()
            for index in stack.left_out:
                found[index] = found[stack.start(1) + (index - stack.first) % stack.period]
        except Exception:  # as ever, then
            continue
        if len(found) == len(stack.keys) and None not in found:
            return found
    return run()


def _short(component: Component, stack: Stack, twins: Sequence[Twins]) -> Component:
    """The component without the state of layers that are left out; in its place the module is given the second's."""
    absent = twins[2 : stack.repeats - 1]
    stand_ins = {other: one for twin in absent for one, other in twin.inputs.items()}
    lacking = {other for twin in absent for other in twin.outputs.values()}
    whole = component.interface

    def kept(tensors: Sequence[Tensor], names: set[str]) -> tuple[Tensor, ...]:
        return tuple(tensor for tensor in tensors if tensor.name not in names)

    interface = replace(
        whole,
        inputs=kept(whole.inputs, set(stand_ins)),
        outputs=kept(whole.outputs, lacking),
        state=tuple(pair for pair in whole.state if pair.input not in stand_ins),
    )
    return replace(component, interface=interface, stand_ins=stand_ins)
