"""ONNX Runtime behind the session protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.errors import ArtifactError, RunError
from trueport.interface import Dimension, Interface, StatePair, Tensor

if TYPE_CHECKING:
    import onnxruntime

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


class State:
    """The tensors that one step hands to the next, in the runtime's own buffers.

    Attributes:
        values: OrtValues by input name.
    """

    def __init__(self, values: dict[str, Any]) -> None:
        self.values = values

    def take(self, rows: Sequence[int] | np.ndarray) -> State:
        """The state whose row i is this state's row ``rows[i]``; rows may repeat."""
        import onnxruntime

        index = np.asarray(rows)
        return State(
            {
                name: onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value.numpy()[index]))
                for name, value in self.values.items()
            }
        )

    def length(self, name: str, axis: int) -> int:
        """Length of one tensor's axis."""
        return int(self.values[name].shape()[axis])


class OnnxSession:
    """One graph in ONNX Runtime.

    Args:
        path: the ``.onnx`` file.
        interface: from the manifest; read from the graph where there is none.
        memory: ``fast`` folds and prepacks weights, ``map`` leaves them mapped.
        threads: intra-op threads; None leaves it to the runtime.
    """

    def __init__(
        self, path: Path, interface: Interface | None = None, *, memory: str = "fast", threads: int | None = None
    ) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        if threads is not None:
            options.intra_op_num_threads = threads
        if memory == "map":
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
            options.add_session_config_entry("session.disable_prepacking", "1")
            options.add_session_config_entry("optimization.disable_specified_optimizers", "ConstantFolding")
        self.path = path
        try:
            self.runtime: onnxruntime.InferenceSession = onnxruntime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            reason = " ".join(str(error).split())
            raise ArtifactError(f"ONNX Runtime cannot open {path.name}: {reason[:300]}") from error
        self.interface = interface if interface is not None else read_interface(self.runtime)
        self._outputs = [tensor.name for tensor in self.interface.outputs]
        self._plain = [tensor.name for tensor in self.interface.plain_outputs]

    def empty_state(self, batch: int) -> State:
        """State before the first step: every tensor with length 0 along its state axis."""
        import onnxruntime

        values = {}
        for pair in self.interface.state:
            tensor = self.interface.input(pair.input)
            shape = [batch if axis == 0 else size if isinstance(size, int) else 0 for axis, size in enumerate(tensor.shape)]
            values[pair.input] = onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(shape, numpy_dtype(tensor.dtype)))
        return State(values)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All inputs by name to all outputs by name.

        Raises:
            RunError: the runtime refuses; the message names the shapes.
        """
        return self._guard(feeds, lambda: dict(zip(self._outputs, self.runtime.run(self._outputs, dict(feeds)), strict=True)))

    def step(self, feeds: Mapping[str, np.ndarray], state: State) -> tuple[dict[str, np.ndarray], State]:
        """Plain inputs and a state to plain outputs and the next state, whose buffers stay in the runtime."""
        import onnxruntime

        values = dict(state.values)
        for name, array in feeds.items():
            values[name] = onnxruntime.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(array))
        results = self._guard(feeds, lambda: self.runtime.run_with_ort_values(self._outputs, values))
        named = dict(zip(self._outputs, results, strict=True))
        following = State({pair.input: named[pair.output] for pair in self.interface.state})
        return {name: named[name].numpy() for name in self._plain}, following

    def _guard(self, feeds: Mapping[str, np.ndarray], call: Any) -> Any:
        unknown = set(feeds) - {tensor.name for tensor in self.interface.inputs}
        if unknown:
            raise RunError(f"{self.path.name} has no input {sorted(unknown)[0]}")
        try:
            return call()
        except Exception as error:
            shapes = ", ".join(f"{name} {tuple(array.shape)}" for name, array in feeds.items())
            reason = " ".join(str(error).split())
            raise RunError(f"{self.path.name} refuses {shapes}: {reason[:400]}") from error


def numpy_dtype(name: str) -> np.dtype:
    """The NumPy dtype; bfloat16 comes from ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)


def read_interface(runtime: onnxruntime.InferenceSession) -> Interface:
    """The interface that a graph's own names tell: ``past_key_values.X`` is fed from ``present.X``."""
    inputs = tuple(_tensor(value) for value in runtime.get_inputs())
    outputs = tuple(_tensor(value) for value in runtime.get_outputs())
    names = {tensor.name for tensor in outputs}
    pairs = []
    for tensor in inputs:
        output = state_output(tensor.name, names)
        if output is not None:
            axis = next((i for i, size in enumerate(tensor.shape) if i and isinstance(size, str)), 2)
            pairs.append(StatePair(tensor.name, output, axis))
    symbols = {size for tensor in inputs for size in tensor.shape if isinstance(size, str)}
    return Interface(inputs, outputs, tuple(Dimension(name, 0) for name in sorted(symbols)), tuple(pairs))


def state_output(name: str, outputs: set[str]) -> str | None:
    """The output that feeds state input ``name`` at the next step, among the spellings in use; None for no state."""
    for past, presents in (("past_key_values.", ("present.", "present_key_values.", "present_")), ("past_", ("present_",))):
        if name.startswith(past):
            for present in presents:
                if present + name.removeprefix(past) in outputs:
                    return present + name.removeprefix(past)
    if f"present_{name}" in outputs:
        return f"present_{name}"
    return None


def _tensor(value: Any) -> Tensor:
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return Tensor(value.name, ORT_DTYPES.get(value.type, value.type), shape)
