"""Weights beside the program, in a ``.ptd``, where the program itself would be too large."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from trueport.errors import ArtifactError
from trueport.targets.executorch.flat import check_data

LARGEST_PROGRAM = 2 * 10**9
"""Bytes of weights that a ``.pte`` holds by itself unless the user says otherwise; phones' loaders and 32 bit offsets
end there."""
ABSENT = "error: 0x20"
"""What ExecuTorch 1.4 says of a weight that it does not find (runtime/core/error.h)."""
STEM = "model"
"""The name of the file that ExecuTorch writes the weights to, without ``.ptd``."""


def weights_size(tensors: Iterable[Any]) -> int:
    """Bytes of weights and constants, those that methods share once; what is no tensor has none."""
    seen: dict[int, int] = {}
    for tensor in tensors:
        if isinstance(tensor, torch.Tensor):
            # By the storage's own address: that of its bytes is refused where a quantiser made the tensor.
            seen[tensor.untyped_storage()._cdata] = tensor.numel() * tensor.element_size()
    return sum(seen.values())


def put_beside(programs: Mapping[str, torch.export.ExportedProgram]) -> None:
    """Mark every weight, so that XNNPACK's delegate leaves its bytes out; ExecuTorch's own are told by its config."""
    for program in programs.values():
        signature = program.graph_signature
        weights = {
            *signature.inputs_to_parameters,
            *signature.inputs_to_buffers,
            *signature.inputs_to_lifted_tensor_constants,
        }
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in weights:
                custom: dict[str, Any] = node.meta.setdefault("custom", {})
                custom["delegate_constant_tag"] = STEM


class Beside:
    """A program whose weights lie in a ``.ptd``, as ``executorch.runtime`` has one whose weights lie in itself.

    Args:
        path: the ``.pte``.
        data: the ``.ptd``.
    """

    def __init__(self, path: Path, data: Path) -> None:
        from executorch.extension.pybindings.portable_lib import _load_for_executorch

        if not data.is_file():
            raise ArtifactError(f"{data.name} is missing, which holds the weights of {path.name}", "Export again.")
        check_data(data)
        try:
            self._module = _load_for_executorch(str(path), str(data))
            self.method_names = set(self._module.method_names())
            self._files = path.name, data.name
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise ArtifactError(
                f"ExecuTorch cannot open {path.name} with its weights in {data.name}: {reason}", "Export again."
            ) from error

    def load_method(self, name: str) -> Method:
        """One method."""
        return Method(self._module, name, self._files)


class Method:
    """One method of a Beside, whose weights the runtime looks for when it first runs."""

    def __init__(self, module: Any, name: str, files: tuple[str, str]) -> None:
        self._module, self._name, self._files = module, name, files
        self.metadata = module.method_meta(name)  # reads the program, and what the .ptd says of itself

    def execute(self, inputs: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Inputs to outputs, in their order.

        Raises:
            ArtifactError: the file beside the program lacks a weight of it.
        """
        try:
            results: Sequence[torch.Tensor] = self._module.run_method(self._name, inputs)
        except RuntimeError as error:
            if str(error).rstrip().endswith(ABSENT):
                program, data = self._files
                problem = f"{data} does not hold the weights of {program}: it is another export's"
                raise ArtifactError(problem, "Copy both files of one export.") from error
            raise
        return results
