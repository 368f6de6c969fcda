"""One run of the whole model, on shapes where it has no weights: does every repetition do the same?

The structure of layers does not tell what a loop over them does: which mask it hands to which, or what it does at every
fourth. So each repetition is held against the second one, operation by operation: the operator, its constants, and where
its operands come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from trueport.graphs.stamping import RefusedError
from trueport.graphs.stamping.stacks import Stack
from trueport.memo import Memo
from trueport.roles.component import Component, sample
from trueport.weights.linked import fake_mode_of, is_fake

SMALL = 64
"""Elements of the largest constant that is compared by its values."""
NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")
"""The part of a state's name that counts the layers."""
Reference = tuple[Any, ...]
"""Where a tensor comes from: ``("made", operation, output)``, ``("weight", name)``, ``("input", name)``, or its values."""


@dataclass
class Trace:
    """What was run.

    Attributes:
        operations: operator and arguments, tensors among them as references.
        ends: for each container the layers' indices in the order in which they ran, and the operation behind each.
        outputs: where each output comes from.
    """

    operations: list[tuple[Any, Any]] = field(default_factory=list)
    ends: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    outputs: dict[str, Reference] = field(default_factory=dict)


@dataclass(frozen=True)
class Twins:
    """State of one repetition: its inputs' and outputs' names by those of the second repetition."""

    inputs: Mapping[str, str]
    outputs: Mapping[str, str]


class Recorder(TorchDispatchMode):
    """Notes every operation, and which earlier one each of its operands comes from."""

    def __init__(self, known: Mapping[int, Reference]) -> None:
        super().__init__()
        self.trace = Trace()
        self.known = dict(known)
        self.memo = Memo()
        self.alive: list[Any] = []  # an id is a tensor's own only while the tensor lives

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing is compiled here, and torch's guard against it takes a tenth of the run."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.prim.device.default:  # no operation of the model's: real tensors are not asked this way
            return args[0].fake_device if type(args[0]) is FakeTensor else func(*args)
        noted = (self.seen(args), tuple((key, self.seen(kwargs[key])) for key in sorted(kwargs)) if kwargs else ())
        result = self.memo.call(func, args, kwargs)
        number = len(self.trace.operations)
        self.trace.operations.append((func, noted))
        for place, tensor in enumerate(result if isinstance(result, (tuple, list)) else (result,)):
            if isinstance(tensor, torch.Tensor):
                self.known[id(tensor)] = ("made", number, place)
                self.alive.append(tensor)
        return result

    def seen(self, value: Any) -> Any:
        """An argument with references in the place of tensors."""
        if isinstance(value, torch.Tensor):
            return self.reference(value)
        if isinstance(value, (tuple, list)):
            return tuple([self.seen(entry) for entry in value])
        return repr(value)

    def reference(self, tensor: torch.Tensor) -> Reference:
        """Where a tensor comes from; a constant that was written into the code is known by its values."""
        if id(tensor) not in self.known:
            self.alive.append(tensor)
            plain = type(tensor) is torch.Tensor and tensor.numel() <= SMALL
            values = str(tensor.tolist()) if plain else id(tensor)
            self.known[id(tensor)] = ("constant", str(tensor.dtype), tuple(tensor.shape), values)
        return self.known[id(tensor)]


def traced(component: Component, stacks: Sequence[Stack], *, valued: bool = True) -> Trace:
    """Run the component once at the sizes that the capture takes.

    Args:
        component: what to run.
        stacks: the layers whose operations are told apart.
        valued: whether it computes; else it runs on shapes alone, as a model without memory does in any case.

    Raises:
        RefusedError: it does not run.
    """
    from trueport.patches.context import applied
    from trueport.patches.patch import modules_of
    from trueport.patches.transformers_kernels import kernels_of
    from trueport.rewrite.watch import exporting

    module, interface = component.module, component.interface
    feeds = _feeds(component)
    mode: AbstractContextManager[Any] = fake_mode_of(module)
    if not valued and not is_fake(module):
        fake = FakeTensorMode(allow_non_fake_inputs=True)
        feeds, mode = {name: fake.from_tensor(tensor) for name, tensor in feeds.items()}, fake
    known: dict[int, Reference] = {id(tensor): ("input", name) for name, tensor in feeds.items()}
    for name, tensor in (
        *module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False),
    ):  # fmt: skip
        before = known.get(id(tensor))
        if before is not None and any(stack.place(n) for stack in stacks for n in (name, before[1])):
            raise RefusedError(f"{name} is {before[1]} too")
        known[id(tensor)] = ("weight", name)
    recorder = Recorder(known)
    kernels = kernels_of(modules_of(module))  # their own loops are long, and may lose a state
    with ExitStack() as hooks, torch.no_grad(), applied(kernels), exporting(), mode, recorder:
        for stack in stacks:
            ends = recorder.trace.ends.setdefault(stack.path, [])
            for index, layer in enumerate(module.get_submodule(stack.path).children()):
                note = _noting(recorder.trace, ends, index)
                hooks.callback(layer.register_forward_hook(note).remove)
        try:
            results = module(**feeds, **{name: feeds[other] for name, other in component.stand_ins.items()})
        except Exception as error:
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:120]
            raise RefusedError(f"it does not run without its values ({reason})") from error
    for output in interface.outputs:
        recorder.trace.outputs[output.name] = recorder.reference(results[output.name])
    return recorder.trace


def _feeds(component: Component) -> dict[str, torch.Tensor]:
    """What the capture takes; in a model without memory the caches have none either: a Memo knows nothing else."""
    feeds = sample(component.interface, component.sizes) if component.feeds is None else dict(component.feeds)
    if is_fake(component.module):
        memo, empty = Memo(), torch.ops.aten.empty.memory_format
        with fake_mode_of(component.module):
            for name in component.interface.state_inputs:
                if feeds[name].is_floating_point():
                    feeds[name] = memo.call(empty, (tuple(feeds[name].shape),), {"dtype": feeds[name].dtype})
    return feeds


def _noting(trace: Trace, ends: list[tuple[int, int]], index: int) -> Any:
    return lambda *_: ends.append((index, len(trace.operations)))


def twins_of(component: Component, stack: Stack, trace: Trace) -> list[Twins]:
    """Hold every repetition against the second one; returns the state of each, by its number.

    Raises:
        RefusedError: one of them differs; the message says where.
    """
    ran = trace.ends.get(stack.path, [])
    if [index for index, _ in ran] != list(range(len(stack.keys))):
        raise RefusedError(f"the layers of {stack.path} do not run one after the other")
    blocks = [_Block(component, stack, trace, number) for number in range(1, stack.repeats)]
    for block in blocks:
        block.read()
        if block.forms != blocks[0].forms:
            pairs = zip(block.forms, blocks[0].forms, strict=False)
            at = next((str(one[0]) for one, other in pairs if one != other), "more operations")
            first, second = stack.layer(stack.start(block.number)), stack.layer(stack.start(1))
            raise RefusedError(f"{first} does not do what {second} does ({at})")
    step = blocks[1].base - blocks[0].base
    if any(block.base - blocks[0].base != step * (block.number - 1) for block in blocks):
        raise RefusedError(f"the states of {stack.path} are not counted one by one")
    _refuse_leaks(stack, trace, blocks)
    return [Twins({}, {}), *(block.twins(blocks[0]) for block in blocks)]


def _begin(trace: Trace, stack: Stack, block: int) -> int:
    """The first operation of a repetition but the first: what a loop does between two layers is the second one's."""
    return trace.ends[stack.path][stack.start(block) - 1][1]


def check_short(short: Trace, whole: Trace, stack: Stack) -> None:
    """Hold a shortened model's run against the whole one's, less the layers that are left out.

    A model may ask how many layers it has, or which one is the last.

    Raises:
        RefusedError: they are not the same.
    """
    second, gap, last = (_begin(whole, stack, block) for block in (2, stack.repeats - 2, stack.repeats - 1))

    def moved(noted: Any) -> Any:
        if not isinstance(noted, tuple):
            return noted
        if len(noted) == 3 and noted[0] == "made":
            return noted if noted[1] < gap else ("made", noted[1] - last + second, noted[2])
        return tuple(moved(entry) for entry in noted)

    expected = whole.operations[:second] + [(func, moved(noted)) for func, noted in whole.operations[last:]]
    outputs = {name: moved(whole.outputs[name]) for name in short.outputs}
    if len(short.operations) != len(expected) or (short.operations, short.outputs) != (expected, outputs):
        raise RefusedError("the model computes other things where it has fewer layers")


class _Block:
    """The operations of one repetition, from the end of the layer before it to the end of its last."""

    def __init__(self, component: Component, stack: Stack, trace: Trace, number: int) -> None:
        self.component, self.stack, self.trace, self.number = component, stack, trace, number
        self.start, self.end = (_begin(trace, stack, block) for block in (number, number + 1))
        self.forms: list[Any] = []
        self.inputs: dict[tuple[str, int], str] = {}
        self.outputs: dict[tuple[str, int], str] = {}
        self.base = 0

    def read(self) -> None:
        """Write its operations down relative to itself."""
        state = set(self.component.interface.state_inputs)
        operations = self.trace.operations[self.start : self.end]
        used = [name for _, noted in operations for name in _inputs(noted) if name in state]
        given = {pair.output for pair in self.component.interface.state}
        made = {n: r for n, r in self.trace.outputs.items() if r[0] == "made" and self.start <= r[1] < self.end}
        numbers = [_numbered(name)[1] for name in (*used, *(name for name in made if name in given))]
        self.base = min(numbers, default=0)
        self.inputs = {self._key(name): name for name in used}
        self.forms = [(func, self._form(noted, state)) for func, noted in operations]
        for name in sorted((name for name in made if name in given), key=self._key):
            self.outputs[self._key(name)] = name
            self.forms.append((self._key(name), made[name][1] - self.start, made[name][2]))

    def _key(self, name: str) -> tuple[str, int]:
        template, number = _numbered(name)
        return template, number - self.base

    def _form(self, noted: Any, state: set[str]) -> Any:
        if not isinstance(noted, tuple):
            return noted
        if noted and noted[0] == "made" and len(noted) == 3:
            number, place = noted[1:]
            if number >= self.start:
                return "own", number - self.start, place
            back = self.start - number
            return ("before", back, place) if back <= self.end - self.start else noted
        if noted and noted[0] == "weight" and len(noted) == 2:
            found = self.stack.place(noted[1])
            return noted if found is None else ("weight", found[0] - self.stack.start(self.number), found[1])
        if noted and noted[0] == "input" and len(noted) == 2 and noted[1] in state:
            return "state", *self._key(noted[1])
        return tuple(self._form(entry, state) for entry in noted)

    def twins(self, second: _Block) -> Twins:
        """Its state beside that of the second repetition."""
        inputs = {second.inputs[key]: name for key, name in self.inputs.items()}
        outputs = {second.outputs[key]: name for key, name in self.outputs.items()}
        interface = self.component.interface
        for find, names in ((interface.input, inputs), (interface.output, outputs)):
            for one, other in names.items():
                if (find(one).dtype, find(one).shape) != (find(other).dtype, find(other).shape):
                    raise RefusedError(f"{other} is not of the shape of {one}")
        return Twins(inputs, outputs)


def _numbered(name: str) -> tuple[str, int]:
    found = NUMBER.findall(name)
    if len(found) != 1:
        raise RefusedError(f"the state {name} does not tell its layer")
    return NUMBER.sub("*", name), int(found[0])


def _inputs(noted: Any) -> Iterable[str]:
    if isinstance(noted, tuple):
        if len(noted) == 2 and noted[0] == "input" and isinstance(noted[1], str):
            yield noted[1]
        else:
            for entry in noted:
                yield from _inputs(entry)


def _refuse_leaks(stack: Stack, trace: Trace, blocks: Sequence[_Block]) -> None:
    """What the inner repetitions compute may reach the next one and the state, and nothing else."""
    start, end = blocks[0].start, blocks[-1].start
    state = {name for block in blocks for name in block.outputs.values()}
    leaks = [name for name, r in trace.outputs.items() if r[0] == "made" and start <= r[1] < end and name not in state]
    leaks += [str(func) for func, noted in trace.operations[blocks[-1].end :] if _reads(noted, start, end)]
    if leaks:
        raise RefusedError(f"{leaks[0]} reads what layers within {stack.path} compute")


def _reads(noted: Any, start: int, end: int) -> bool:
    if not isinstance(noted, tuple):
        return False
    if len(noted) == 3 and noted[0] == "made":
        return start <= noted[1] < end
    return any(_reads(entry, start, end) for entry in noted)
