"""The one description of a component's inputs, outputs and state; everything else derives from it."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from trueport.axes import value_of

DTYPES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int64": 8, "int32": 4, "bool": 1}
"""Element sizes in bytes by dtype name."""


INITIAL = ("empty", "zeros", "encoder")
"""What a state is before the first step: of length 0 along an axis, all zeros, or what an encoder gave out."""
BATCH = "batch_size"
"""The dimension of the rows, where a user gave it no other name."""
SOURCE, PAST_SOURCE = "encoder_sequence_length", "past_encoder_sequence_length"
"""How long an encoder's output is, and as much of it as a decoder's cache holds: nothing or all."""
PAST = "past_sequence_length"
"""The dimension that grows with every token."""
CAPACITY = "cache_capacity"
"""The length of a cache that is written in place: at least past and new tokens together."""


@dataclass(frozen=True)
class Dimension:
    """A named axis length and the range that the artefact serves.

    ``maximum`` is None where nothing bounds it. ``because`` names what bounds it, for messages.
    """

    name: str
    minimum: int = 1
    maximum: int | None = None
    because: str = ""


@dataclass(frozen=True)
class Tensor:
    """A named tensor: ``shape`` holds integers, dimension names, sums such as ``"a + b"``, and an output's arithmetic."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def concrete(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The shape at the given dimension sizes."""
        return tuple(evaluate(axis, sizes) for axis in self.shape)


@dataclass(frozen=True)
class StatePair:
    """At the next step, ``input`` is fed from ``output``; before the first it is empty along ``axis``.

    ``in_place`` is a buffer that is bound as both: a step writes its new entries behind the past, whose length the
    mask tells.
    """

    input: str
    output: str
    axis: int
    initial: str = "empty"
    in_place: bool = False


@dataclass(frozen=True)
class Interface:
    """Inputs, outputs and state of one component, in the order of the graph's own signature.

    ``kept`` are buffers inside the program that carry state from call to call, unseen by the caller. ``ending`` are tokens
    that the model wants each row of ``input_ids`` to end in; almost none wants any.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    dimensions: tuple[Dimension, ...]
    state: tuple[StatePair, ...] = field(default=())
    kept: tuple[Tensor, ...] = field(default=())
    ending: tuple[int, ...] = field(default=())

    def input(self, name: str) -> Tensor:
        """The input called ``name``; KeyError when there is none."""
        return _find(self.inputs, name)

    def output(self, name: str) -> Tensor:
        """The output called ``name``; KeyError when there is none."""
        return _find(self.outputs, name)

    def has_input(self, name: str) -> bool:
        """Whether an input has this name."""
        return any(tensor.name == name for tensor in self.inputs)

    def dimension(self, name: str) -> Dimension:
        """The dimension called ``name``; KeyError when there is none."""
        for dimension in self.dimensions:
            if dimension.name == name:
                return dimension
        raise KeyError(name)

    def largest(self, axis: int | str) -> int:
        """The longest that an axis of bounded dimensions gets; a sum with a past ends where the past's own bound does.

        Raises:
            KeyError: a dimension has no maximum.
        """
        if isinstance(axis, int):
            return axis
        bounds = {part: self.dimension(part).maximum for part in terms(axis)}
        if any(bound is None for bound in bounds.values()):
            raise KeyError(f"{axis} is unbounded")
        past = bounds.get(PAST)
        if len(bounds) > 1 and past is not None:
            return past + 1
        return sum(bound for bound in bounds.values() if bound is not None)

    @property
    def state_inputs(self) -> tuple[str, ...]:
        """Names of the inputs that carry state."""
        return tuple(pair.input for pair in self.state)

    @property
    def plain_inputs(self) -> tuple[Tensor, ...]:
        """The inputs that a caller feeds."""
        state = set(self.state_inputs)
        return tuple(tensor for tensor in self.inputs if tensor.name not in state)

    @property
    def plain_outputs(self) -> tuple[Tensor, ...]:
        """The outputs that a caller reads."""
        state = {pair.output for pair in self.state}
        return tuple(tensor for tensor in self.outputs if tensor.name not in state)

    @property
    def fed(self) -> frozenset[str]:
        """Dimensions that the inputs of a caller tell by themselves; those of a state alone are not among them."""
        return frozenset(
            axis for t in self.plain_inputs for axis in t.shape if isinstance(axis, str) and "+" not in axis
        )

    @property
    def counts_past(self) -> bool:
        """Whether inputs are as long as the past while no tensor of a state is: whoever steps has to count."""
        kept = {axis for pair in self.state for axis in self.input(pair.input).shape}
        told = {term for tensor in self.plain_inputs for axis in tensor.shape for term in terms(axis)}
        return PAST in told and not kept & {PAST, CAPACITY}

    @property
    def rows(self) -> str | None:
        """The dimension of the rows, also under a user's name: the first of a caller's inputs that a state has too."""
        if any(dimension.name == BATCH for dimension in self.dimensions):  # of one row at most no axis is called so
            return BATCH
        kept = {axis for pair in self.state for axis in self.input(pair.input).shape}
        return next((axis for t in self.plain_inputs for axis in t.shape if axis in self.fed and axis in kept), None)  # type: ignore[return-value]

    @property
    def kept_states(self) -> tuple[Tensor, ...]:
        """What is kept that is no longer than before when a token has been read, and so cannot forget one."""
        return tuple(tensor for tensor in self.kept if tensor.name.rpartition(".")[2] not in ("key", "value"))

    @property
    def row_axes(self) -> dict[str, int]:
        """The axis of the rows by state input; what has none is every row's."""
        shapes = {pair.input: self.input(pair.input).shape for pair in self.state}
        found = {name: shape.index(self.rows) for name, shape in shapes.items() if self.rows in shape}
        if found or not all(isinstance(shape[0], str) if shape else False for shape in shapes.values()):
            return found
        # Graphs of others may give the rows of a cache a name of its own.
        return {} if any(pair.axis == 0 for pair in self.state) else dict.fromkeys(shapes, 0)

    def with_outputs(self, outputs: Iterable[Tensor]) -> Interface:
        """The same interface with other outputs."""
        return replace(self, outputs=tuple(outputs))

    def to_json(self) -> dict[str, Any]:
        """The form that the manifest stores."""
        rest = {"kept": [_tensor_json(tensor) for tensor in self.kept], "ending": list(self.ending)}
        return {
            "inputs": [_tensor_json(tensor) for tensor in self.inputs],
            "outputs": [_tensor_json(tensor) for tensor in self.outputs],
            "state": [
                {"input": pair.input, "output": pair.output, "axis": pair.axis, "initial": pair.initial}
                | ({"in_place": True} if pair.in_place else {})
                for pair in self.state
            ],
            "dimensions": {dimension.name: [dimension.minimum, dimension.maximum] for dimension in self.dimensions},
        } | {name: entries for name, entries in rest.items() if entries}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Interface:
        """The interface that ``to_json`` wrote.

        Raises:
            KeyError, TypeError, ValueError: ``data`` is not of its form.
        """
        for part in ("inputs", "outputs", "state", "kept", "ending"):
            if not isinstance(data.get(part, []), list):
                raise ValueError(f"{part} is no list")
        found = Interface(
            inputs=tuple(_tensor_from_json(entry) for entry in data["inputs"]),
            outputs=tuple(_tensor_from_json(entry) for entry in data["outputs"]),
            dimensions=tuple(Dimension(name, bounds[0], bounds[1]) for name, bounds in data["dimensions"].items()),
            state=tuple(
                StatePair(entry["input"], entry["output"], entry["axis"], entry["initial"], bool(entry.get("in_place")))
                for entry in data["state"]
            ),
            kept=tuple(_tensor_from_json(entry) for entry in data.get("kept", ())),
            ending=tuple(data.get("ending", ())),
        )
        found._check()
        return found

    def _check(self) -> None:
        """Raise ValueError where a tensor has no name, an unknown dtype or axis, or a dimension no bounds."""
        for dimension in self.dimensions:
            bounds = [dimension.minimum] + ([] if dimension.maximum is None else [dimension.maximum])
            if not all(_is_length(bound) for bound in bounds):
                raise ValueError(f"{dimension.name} has bounds that are no lengths")
            if bounds[0] > bounds[-1]:
                raise ValueError(f"{dimension.name} ends before it begins")
        if not all(_is_length(token) for token in self.ending):
            raise ValueError("the ending holds something else than tokens")
        tensors = (*self.inputs, *self.outputs, *self.kept)
        if not all(isinstance(name, str) for tensor in tensors for name in (tensor.name, tensor.dtype)):
            raise ValueError("a tensor's name or dtype is no text")
        for kind in (self.inputs, self.outputs, self.kept):
            if len({tensor.name for tensor in kind}) < len(kind):
                raise ValueError("two tensors have one name")
        for tensor in tensors:
            if not all(isinstance(axis, str) or _is_length(axis) for axis in tensor.shape):
                raise ValueError(f"{tensor.name} has an axis that is no length")
            if tensor.dtype not in DTYPES:
                raise ValueError(f"{tensor.name} has the dtype {tensor.dtype!r}")
        for tensor in (*self.inputs, *self.kept):
            for axis in tensor.shape:
                unknown = set(terms(axis)) - {dimension.name for dimension in self.dimensions}
                if unknown:
                    raise ValueError(f"{tensor.name} has an axis {axis!r}, and there is no dimension {min(unknown)}")
        for pair in self.state:
            self._check_state(pair)

    def _check_state(self, pair: StatePair) -> None:
        ranks = {tensor.name: len(tensor.shape) for tensor in self.inputs}
        given = [tensor.name for tensor in self.outputs]
        if pair.initial not in INITIAL:
            raise ValueError(f"the state {pair.input} begins as {pair.initial!r}")
        texts = isinstance(pair.input, str) and isinstance(pair.output, str)
        if not texts or pair.input not in ranks or (pair.output not in given and pair.initial != INITIAL[-1]):
            raise ValueError(f"the state {pair.input} is no input and output")
        if not _is_length(pair.axis) or pair.axis >= max(ranks[pair.input], 1):
            raise ValueError(f"the state {pair.input} has no axis {pair.axis!r}")


@functools.cache
def terms(axis: int | str) -> tuple[str, ...]:
    """The dimension names that an axis adds up; empty for an integer."""
    return () if isinstance(axis, int) else tuple(term.strip() for term in axis.split("+"))


def float_dtype_of(interfaces: Iterable[Interface]) -> str:
    """The dtype of the first float output; ``float32`` where there is none."""
    floats = (tensor.dtype for interface in interfaces for tensor in interface.outputs if "float" in tensor.dtype)
    return next(floats, "float32")


def evaluate(axis: int | str, sizes: Mapping[str, int]) -> int:
    """The length of an axis at the given dimension sizes.

    Raises:
        KeyError: a dimension has no size.
        ValueError: the axis is no arithmetic of dimensions (``axes.value_of``).
    """
    if isinstance(axis, int):
        return axis
    parts = terms(axis)
    # Names of users and of other tools are any text: only what is no plain sum of them is read as an expression.
    return sum(sizes[part] for part in parts) if all(part in sizes for part in parts) else value_of(axis, sizes)


def _is_length(axis: Any) -> bool:
    return isinstance(axis, int) and not isinstance(axis, bool) and 0 <= axis < 2**63


def _find(tensors: Iterable[Tensor], name: str) -> Tensor:
    for tensor in tensors:
        if tensor.name == name:
            return tensor
    raise KeyError(name)


def _tensor_json(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "dtype": tensor.dtype, "shape": list(tensor.shape)}


def _tensor_from_json(entry: Mapping[str, Any]) -> Tensor:
    if not isinstance(entry["shape"], list):
        raise TypeError(f"{entry['name']} has no list as shape")
    return Tensor(entry["name"], entry["dtype"], tuple(entry["shape"]))
