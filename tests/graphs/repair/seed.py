"""The experiment of microsoft/onnxruntime#14363 as graphs: 13 heads of 37, 7 tokens, 147 features, everything N(0, 1)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEADS, SIZE, LENGTH, HIDDEN = 13, 37, 7, 147
WIDTH = HEADS * SIZE
SEED_MASK = np.array([[0, 1, 1, 0, 0, 1, 0]], dtype=np.int32)
KINDS = ("Attention", "QAttention u8", "QAttention s8")


def masks(count: int) -> np.ndarray:
    """The seed's mask, and ``count - 1`` drawn like it: int32 (count, 7), 0 and 1 with equal chance."""
    drawn = np.random.default_rng(14363).integers(0, 2, (count - 1, LENGTH)).astype(np.int32)
    return np.concatenate([SEED_MASK, drawn])


def weights(gain: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Weights (147, 1443) and bias (1443,); ``gain`` scales queries and keys, so scores grow with its square."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((HIDDEN, 3 * WIDTH)).astype(np.float32)
    b = rng.standard_normal(3 * WIDTH).astype(np.float32)
    w[:, : 2 * WIDTH] *= gain
    b[: 2 * WIDTH] *= gain
    return w, b


def hidden_states() -> np.ndarray:
    """float32 (1, 7, 147)."""
    return np.random.default_rng(1).standard_normal((1, LENGTH, HIDDEN)).astype(np.float32)


def quantized(array: np.ndarray, kind: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Integers, scale and zero point of one tensor: u8 is asymmetric, s8 symmetric."""
    if kind.endswith("u8"):
        low, high = min(float(array.min()), 0.0), max(float(array.max()), 0.0)
        scale = (high - low) / 255
        zero = round(-low / scale)
        return np.clip(np.round(array / scale) + zero, 0, 255).astype(np.uint8), np.float32(scale), np.uint8(zero)
    scale = float(np.abs(array).max()) / 127
    return np.clip(np.round(array / scale), -127, 127).astype(np.int8), np.float32(scale), np.int8(0)


def build(kind: str, path: Path, *, gain: float = 1.0, fill: float | None = None) -> Path:
    """The graph: one operator with ``unidirectional`` and a raw mask; of QAttention the input is quantised inside.

    ``fill`` is the mask_filter_value, -10000 unless given.
    """
    w, b = weights(gain)
    options = {"num_heads": HEADS, "unidirectional": 1} | ({} if fill is None else {"mask_filter_value": fill})
    stored = {"b": b}
    if kind == "Attention":
        stored["w"] = w
        nodes = [
            helper.make_node("Attention", ["x", "w", "b", "mask_index"], ["y"], "at", None, "com.microsoft", **options)
        ]
    else:
        stored["w"], stored["w_scale"], stored["w_zero"] = quantized(w, kind)
        _, stored["x_scale"], stored["x_zero"] = quantized(hidden_states(), "u8")
        names = ["xq", "w", "b", "x_scale", "w_scale", "mask_index", "x_zero", "w_zero"]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
            helper.make_node("QAttention", names, ["y"], "at", None, "com.microsoft", **options),
        ]
    graph = helper.make_graph(
        nodes,
        "seed",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "length", HIDDEN]),
            helper.make_tensor_value_info("mask_index", TensorProto.INT32, ["batch", "length"]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", "length", WIDTH])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), path)
    return path


def heads(kind: str, gain: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Queries, keys and values, each float64 (1, 13, 7, 37), from the weights as the operator has them."""
    w, b = weights(gain)
    x = hidden_states()
    if kind != "Attention":
        integers, scale, zero = quantized(w, kind)
        w = (integers.astype(np.float64) - float(zero)) * np.float64(scale)
        integers, scale, zero = quantized(x, "u8")
        x = (integers.astype(np.float64) - float(zero)) * np.float64(scale)
    whole = x.astype(np.float64) @ w.astype(np.float64) + b
    q, k, v = (part.reshape(1, LENGTH, HEADS, SIZE).swapaxes(1, 2) for part in np.split(whole, 3, axis=-1))
    return q, k, v
