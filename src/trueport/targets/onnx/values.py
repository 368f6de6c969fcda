"""Between ONNX Runtime's values, torch and NumPy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.dtypes import array_of, tensor_of

if TYPE_CHECKING:
    import torch


def from_torch(tensor: torch.Tensor) -> Any:
    """An OrtValue over the tensor's memory, which it keeps alive; a copy of what is scattered or not on the CPU."""
    import onnxruntime
    import torch

    tensor = (
        tensor.detach().cpu().resolve_neg().contiguous()
    )  # of a conjugate's imaginary part, the memory has the other sign
    if tensor.dtype == torch.bool:  # DLPack's bool is newer than the one that ONNX Runtime reads
        return onnxruntime.OrtValue.ortvalue_from_numpy(tensor.numpy())
    # A capsule takes the short way: torch's own __dlpack__ and from_dlpack first ask for devices, streams and versions.
    return onnxruntime.OrtValue.from_dlpack(torch.utils.dlpack.to_dlpack(tensor))


def to_torch(value: Any) -> torch.Tensor:
    """A tensor over the OrtValue's memory, which it keeps alive."""
    import torch

    tensor = torch.from_dlpack(value.__dlpack__())
    return tensor.view(torch.bool) if tensor.dtype == torch.uint8 and value.data_type() == "tensor(bool)" else tensor


def from_numpy(array: np.ndarray) -> Any:
    """An OrtValue of the array, bfloat16 included."""
    import onnxruntime

    array = np.asarray(array, order="C")  # ascontiguousarray would give a scalar an axis
    if array.dtype.name == "bfloat16":
        return from_torch(tensor_of(array))
    return onnxruntime.OrtValue.ortvalue_from_numpy(array)


def to_numpy(value: Any) -> np.ndarray:
    """The OrtValue as an array; bfloat16 is ml_dtypes' own."""
    if value.data_type() == "tensor(bfloat16)":
        return array_of(to_torch(value))
    return value.numpy()
