"""ONNX Runtime behind the session protocol."""

from __future__ import annotations

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.errors import ArtifactError, RunError
from trueport.interface import CAPACITY, PAST, Dimension, Interface, StatePair, Tensor, terms
from trueport.targets.onnx.state import BufferedState, Buffers, State
from trueport.targets.onnx.values import from_numpy, from_torch, to_numpy, to_torch

if TYPE_CHECKING:
    import onnxruntime
    import torch

ORT_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(bfloat16)": "bfloat16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(bool)": "bool",
}
"""ONNX Runtime's type names."""


BLOCKWISE = b"MatMulNBits"
"""The operator that takes activations in int8, as it was asked to and proven, only with weights that it may pack."""


class OnnxSession:
    """One graph in ONNX Runtime.

    Args:
        path: the ``.onnx`` file.
        interface: from the manifest; read from the graph where there is none.
        memory: ``fast`` folds and prepacks weights, ``map`` leaves them mapped, but for those in few bits.
        threads: intra-op threads; None leaves it to the runtime.
    """

    def __init__(
        self, path: Path, interface: Interface | None = None, *, memory: str = "fast", threads: int | None = None
    ) -> None:
        import onnxruntime

        self.path = path
        try:
            options = session_options(memory, threads, packed=memory == "map" and _in_blocks(path))
            self.runtime: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ArtifactError(f"ONNX Runtime cannot open {path.name}: {reason[:300]}") from error
        self.interface = interface if interface is not None else read_interface(self.runtime)
        _check_interface(path, self.interface, self.runtime)
        self._inputs = {tensor.name for tensor in self.interface.inputs}
        self._outputs = [tensor.name for tensor in self.interface.outputs]
        self._plain = [tensor.name for tensor in self.interface.plain_outputs]
        self._rows = self.interface.row_axes
        self._buffered = {pair.input: pair.axis for pair in self.interface.state if pair.in_place}
        self._written = {pair.output: pair.input for pair in self.interface.state if pair.in_place}
        self._fixed = {pair.input: pair.output for pair in self.interface.state if not pair.in_place}
        self._unwritten = [name for name in self._outputs if name not in self._written]
        self._teller = _teller(self.interface)
        self._counts = bool(self.interface.state) and self.interface.counts_past
        self._value = onnxruntime.OrtValue

    def empty_state(self, batch: int | Mapping[str, int], given: Mapping[str, Any] | None = None) -> State:
        """State before the first step: zeros, of length 0 along the state axes, whatever an encoder gave.

        Args:
            batch: rows, where the first axis of every tensor is the batch; else the sizes of dimensions by name.
            given: what an encoder gave.
        """
        import torch

        values = {}
        for pair in self.interface.state:
            tensor = self.interface.input(pair.input)
            sizes = batch if isinstance(batch, Mapping) else {}
            shape = [size if isinstance(size, int) else sizes.get(size, 0) for size in tensor.shape]
            shape = shape if isinstance(batch, Mapping) else [batch, *shape[1:]]
            values[pair.input] = from_torch(torch.zeros(shape, dtype=getattr(torch, tensor.dtype)))
        if self._buffered:
            grown = {name: value for name, value in values.items() if name in self._buffered}
            fixed = {name: value for name, value in values.items() if name not in self._buffered}
            return BufferedState(Buffers(grown, 0, 0), self._buffered, 0, self._rows, fixed)
        return State(values, self._rows)

    def sizes(self, state: State) -> dict[str, int]:
        """Sizes of the dimensions that the state's tensors have."""
        sizes = {}
        for pair in self.interface.state:
            for index, axis in enumerate(self.interface.input(pair.input).shape):
                if isinstance(axis, str) and len(terms(axis)) == 1:
                    sizes[PAST if axis == CAPACITY else axis] = state.length(pair.input, index)
        return sizes | ({PAST: state.past} if self._counts else {})

    def shorten(self, state: State, count: int) -> State:
        """The state without its last ``count`` tokens.

        Raises:
            RunError: a part of it has no axis of tokens, such as a recurrent state.
        """
        if any(pair.initial != "empty" for pair in self.interface.state):
            raise RunError(f"The state of {self.path.name} cannot go back by {count} tokens")
        axes = {p.input: (p.axis, self.interface.input(p.input).shape[p.axis]) for p in self.interface.state}
        grown = {name: axis for name, (axis, length) in axes.items() if length in (PAST, CAPACITY)}
        return state.shorten(grown, count)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All inputs by name to all outputs by name.

        Raises:
            RunError: the runtime refuses; the message names the shapes.
        """
        results = self._execute({name: from_numpy(array) for name, array in feeds.items()}, feeds)
        return {name: to_numpy(value) for name, value in results.items()}

    def step(self, feeds: Mapping[str, np.ndarray], state: State) -> tuple[dict[str, np.ndarray], State]:
        """Plain inputs and a state to plain outputs and the next state, whose buffers stay in the runtime."""
        results, following = self._advance({name: from_numpy(array) for name, array in feeds.items()}, feeds, state)
        return {name: to_numpy(results[name]) for name in self._plain}, following

    def advance(self, feeds: Mapping[str, torch.Tensor], state: State | None) -> tuple[dict[str, torch.Tensor], State]:
        """``step`` on torch tensors; nothing is copied on the way in or out.

        The runtime reads the feeds' own memory, and the outputs are views of its buffers that keep them alive.
        """
        values = {name: from_torch(tensor) for name, tensor in feeds.items()}
        results, following = self._advance(values, feeds, state)
        return {name: to_torch(results[name]) for name in self._plain}, following

    def _advance(
        self, values: dict[str, Any], feeds: Mapping[str, Any], state: State | None
    ) -> tuple[dict[str, Any], State]:
        """One step from OrtValues and a state to OrtValues by name and the next state."""
        if state is None:
            state = State({})
        if not isinstance(state, BufferedState):
            past = self._total(feeds, state.past) if self._counts else 0
            results = self._execute(state.values | values, feeds)
            following = self._following(results)
            following.past = past
            return results, following
        missing = self._inputs - values.keys() - state.values.keys()
        if missing:  # the step before left its own bound
            raise RunError(f"{self.path.name} needs {', '.join(sorted(missing))} too")
        total = self._total(feeds, state.used)
        state = state.room(total)
        results = self._execute({**values, **state.fixed} if state.fixed else values, feeds, state.buffers)
        return results, state.following(total, {name: results[output] for name, output in self._fixed.items()})

    def _following(self, results: Mapping[str, Any]) -> State:
        return State({pair.input: results[pair.output] for pair in self.interface.state}, self._rows)

    def _total(self, feeds: Mapping[str, Any], used: int) -> int:
        """Past and new tokens together, as the mask tells them to the graph.

        Raises:
            RunError: it tells another past than the state has.
        """
        if self._teller is None:
            raise RunError(
                f"{self.path.name} needs an input that tells how long its caches are", "Give attention_mask."
            )
        name, index, others = self._teller
        total = used + sum(int(feeds[other].shape[axis]) for other, axis in others)
        if feeds[name].shape[index] != total:
            raise RunError(f"{self.path.name} takes {name} of length {total} here, not {feeds[name].shape[index]}")
        return total

    def _execute(
        self, values: dict[str, Any], feeds: Mapping[str, Any], buffers: Buffers | None = None
    ) -> dict[str, Any]:
        """OrtValues by name to OrtValues by name.

        Args:
            values: all inputs that do not lie in buffers.
            feeds: what the message of an error tells.
            buffers: of caches, which are written where they lie and not given back.
        """
        for name in feeds:
            if name not in self._inputs:
                raise RunError(f"{self.path.name} has no input {name}")
        try:
            binding = self._bound(values, buffers)
            self.runtime.run_with_iobinding(binding)
            results = binding.get_outputs_as_ortvaluevector()
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feeds.items())
            reason = " ".join(str(error).split())
            raise RunError(f"{self.path.name} refuses {shapes}: {reason[:400]}") from error
        # In the order in which they were first bound: caches in buffers come last.
        return {name: self._value(results[index]) for index, name in enumerate(self._given(buffers))}

    def _given(self, buffers: Buffers | None) -> list[str]:
        """Outputs that are not written into buffers."""
        return self._outputs if buffers is None else self._unwritten

    def _bound(self, values: Mapping[str, Any], buffers: Buffers | None) -> onnxruntime.IOBinding:
        """Inputs and outputs for one run; of buffers that this session has written before, only what is new.

        Binding two dozen caches takes as long as two layers of a small model in few bits.
        """
        held = None if buffers is None else buffers.binding
        kept = held is not None and held[0] is self
        binding = held[1] if held is not None and kept else self.runtime.io_binding()
        if buffers is not None and not kept:
            values = {**buffers.values, **values}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, value)
        for name in self._given(buffers):
            binding.bind_output(name)
        if buffers is not None and not kept:
            for name, cache in self._written.items():
                binding.bind_ortvalue_output(name, values[cache])
            buffers.binding = (self, binding)
        return binding


def _teller(interface: Interface) -> tuple[str, int, list[tuple[str, int]]] | None:
    """The input and its axis that is as long as past and new tokens together, and where the other terms' lengths stand."""
    plain = interface.plain_inputs
    places: dict[str, tuple[str, int]] = {}
    for tensor in plain:
        for index, size in enumerate(tensor.shape):
            places.setdefault(str(size), (tensor.name, index))
    for tensor in plain:
        for index, size in enumerate(tensor.shape):
            others = [term for term in terms(size) if term != PAST]
            if terms(size).count(PAST) == 1 and all(term in places for term in others):
                return tensor.name, index, [places[term] for term in others]
    return None


def _in_blocks(path: Path) -> bool:
    """Whether a graph multiplies by weights in blocks of few bits; where it only names the operator, that costs memory."""
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as graph:
        return graph.find(BLOCKWISE) >= 0


def session_options(memory: str, threads: int | None, *, packed: bool = False) -> onnxruntime.SessionOptions:
    """ONNX Runtime's options for ``fast`` or ``map``; ``packed`` lets it copy weights into its kernels' order in both."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what fails is raised as an error, not printed
    if threads is not None:
        options.intra_op_num_threads = threads
    if memory == "map":
        # Not less: the fusion that reads a weight transposed, and so makes no copy of it, is an extended one.
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        # Halves under float32 are cast in every run: an arena would keep room for the largest from the first run on.
        options.enable_cpu_mem_arena = False
        if not packed:
            options.add_session_config_entry("session.disable_prepacking", "1")
        options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
    return options


def _check_interface(path: Path, interface: Interface, runtime: onnxruntime.InferenceSession) -> None:
    """Refuse a manifest that says something else than the graph: the proof's tolerance follows the dtypes."""
    for kind, tensors, values in (
        ("inputs", interface.inputs, runtime.get_inputs()),
        ("outputs", interface.outputs, runtime.get_outputs()),
    ):
        said = {(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in tensors}
        found = {(tensor.name, tensor.dtype, len(tensor.shape)) for tensor in map(_tensor, values)}
        if said != found:
            name = sorted(said ^ found)[0][0]
            raise ArtifactError(f"The {kind} of {path.name} are not what the manifest says ({name})", "Export again.")
    inputs, outputs = ([tensor.name for tensor in tensors] for tensors in (interface.inputs, interface.outputs))
    for pair in interface.state:
        if pair.input not in inputs or pair.output not in outputs:
            raise ArtifactError(f"The state {pair.input} of {path.name} is no input and output of it", "Export again.")


def read_interface(runtime: onnxruntime.InferenceSession) -> Interface:
    """The interface that a graph's own names tell: ``past_key_values.X`` is fed from ``present.X``."""
    inputs = tuple(_tensor(value) for value in runtime.get_inputs())
    outputs = tuple(_tensor(value) for value in runtime.get_outputs())
    names = {tensor.name for tensor in outputs}
    pairs = []
    for tensor in inputs:
        output = state_output(tensor.name, names)
        if output is not None:
            axis = next((i for i, size in enumerate(tensor.shape) if i and isinstance(size, str)), None)
            grows = axis is not None or not tensor.shape[1:]  # of what tells no shape, the most is hoped for
            pair = StatePair(tensor.name, output, axis or 2) if grows else StatePair(tensor.name, output, 0, "zeros")
            pairs.append(pair)
    symbols = {size for tensor in inputs for size in tensor.shape if isinstance(size, str)}
    return Interface(inputs, outputs, tuple(Dimension(name, 0) for name in sorted(symbols)), tuple(pairs))


def state_output(name: str, outputs: set[str]) -> str | None:
    """The output that feeds state input ``name`` at the next step, among the spellings in use; None for no state."""
    caches = ("present.", "present_key_values.", "present_")
    for past, presents in (("past_key_values.", caches), ("past_", ("present_",))):
        if name.startswith(past):
            for present in presents:
                if present + name.removeprefix(past) in outputs:
                    return present + name.removeprefix(past)
    if f"present_{name}" in outputs:
        return f"present_{name}"
    return None


def _tensor(value: Any) -> Tensor:
    shape = tuple(_axis(size) for size in value.shape)
    return Tensor(value.name, ORT_DTYPES.get(value.type, value.type), shape)


def _axis(size: int | str | None) -> int | str:
    """A number where it is one: some exporters write ``"8"``, a name that reads as a number."""
    return int(str(size)) if str(size).isdigit() else str(size)
