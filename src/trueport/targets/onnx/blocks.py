"""Weights in few bits, in the layouts that ONNX Runtime's operators read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Blocks:
    """A matrix (outputs, width) in blocks along its width, as ``MatMulNBits`` takes it.

    Attributes:
        bits: of a weight, 4 or 8.
        size: weights of a block; the last block of a row is filled up with zeros.
        width: of the matrix.
        packed: (outputs, blocks, size * bits / 8) uint8, the first of two 4-bit weights in the low half of its byte.
        scales: (outputs, blocks) float32.
        zeros: 4-bit zero points in the same packing, (outputs, ceil(blocks / 2)) uint8; None for the middle, 128.
    """

    bits: int
    size: int
    width: int
    packed: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None


SIZES = (128, 64, 32, 16)
"""Weights of a block: up to 128 the larger are the faster (docs/quantisation.md)."""


def size_of(width: int, bits: int, most: int) -> int:
    """Of SIZES up to ``most`` the one with which a row takes the fewest bytes, scales and what the last block is filled up
    with included; of those the largest.
    """
    return min((size for size in SIZES if size <= most), key=lambda size: row_bytes(width, bits, size))


def row_bytes(width: int, bits: int, size: int) -> float:
    """Of a row of weights in blocks: a block has its weights, a float32 scale and, in 4 bits, a zero point."""
    return -(-width // size) * (size * bits / 8 + 4 + (0.5 if bits == 4 else 0))


def in_blocks(matrix: np.ndarray, bits: int, size: int) -> Blocks:
    """Round a float32 matrix (outputs, width) to ``w ~ scale * (q - zero)``, with a scale for each block.

    Eight bits lie around 128, the block's largest magnitude at one end. Four bits, which are 16 steps, span the block's
    smallest to its largest weight, zero included: less error than around the middle, at the same speed.
    """
    blocks, width = _cut(matrix, size), matrix.shape[1]
    if bits == 8:
        scales = _steps(np.abs(blocks).max(axis=-1) / 127)
        packed = (np.rint(blocks / scales[..., None]) + 128).clip(1, 255).astype(np.uint8)
        return Blocks(bits, size, width, packed, scales, None)
    scales, zeros = spans(matrix, size)
    levels = (np.rint(blocks / scales[..., None]) + zeros[..., None]).clip(0, 15).astype(np.uint8)
    return levels_in_blocks(levels.reshape(len(matrix), -1)[:, :width], scales, zeros, size)


def _cut(matrix: np.ndarray, size: int) -> np.ndarray:
    """(outputs, blocks, size) of a matrix (outputs, width), the last block filled up with zeros."""
    outputs, width = matrix.shape
    count = -(-width // size)
    padded = np.zeros((outputs, count * size), matrix.dtype)
    padded[:, :width] = matrix
    return padded.reshape(outputs, count, size)


def spans(matrix: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each block the float32 scale and the zero point with which 16 steps span it, (outputs, blocks) each."""
    blocks = _cut(matrix, size)
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    scales = _steps((high - low) / 15)
    return scales, np.rint(-low / scales)


def levels_in_blocks(levels: np.ndarray, scales: np.ndarray, zeros: np.ndarray, size: int) -> Blocks:
    """Four-bit levels (outputs, width) of 0 to 15 with their blocks' scales and zero points, packed."""
    width = levels.shape[1]
    blocks, whole = _cut(levels, size), zeros.astype(np.uint8)
    blocks[:, -1, width - (blocks.shape[1] - 1) * size :] = whole[:, -1:]  # what fills the last block up is zero
    return Blocks(4, size, width, _halves(blocks), scales, _halves(whole))


def restored(blocks: Blocks) -> np.ndarray:
    """The float32 matrix (outputs, width) that the operator computes with."""
    outputs, count = blocks.scales.shape
    if blocks.zeros is None:
        levels, zeros = blocks.packed.astype(np.float32), np.full((1, 1, 1), 128, np.float32)
    else:
        levels = _whole(blocks.packed).astype(np.float32)
        zeros = _whole(blocks.zeros)[:, :count, None].astype(np.float32)
    values: np.ndarray = (levels - zeros) * blocks.scales[..., None]
    return values.reshape(outputs, -1)[:, : blocks.width]


def _steps(scales: np.ndarray) -> np.ndarray:
    """The scales as float32, 1 where all weights of a block are zero."""
    return np.where(scales > 0, scales, 1).astype(np.float32)


def _halves(levels: np.ndarray) -> np.ndarray:
    """Two numbers below 16 in a byte, along the last axis, which is filled up to an even length."""
    if levels.shape[-1] % 2:
        levels = np.concatenate([levels, np.zeros_like(levels[..., :1])], axis=-1)
    packed: np.ndarray = levels[..., 0::2] | (levels[..., 1::2] << 4)
    return packed


def _whole(packed: np.ndarray) -> np.ndarray:
    """What ``_halves`` packed."""
    return np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1)


@dataclass(frozen=True)
class Columns:
    """A matrix (width, outputs) with a scale for each output, as ``MatMulIntegerToFloat`` takes it.

    Attributes:
        values: (width, outputs) int8, at most ``LARGEST`` in magnitude.
        scales: (outputs,) float32.
    """

    values: np.ndarray
    scales: np.ndarray


LARGEST = 64
"""Of an int8 weight beside uint8 activations: x86 processors without VNNI add two products in 16 bits, and
2 * 255 * 64 is the most that does not overflow there in silence."""


def in_columns(matrix: np.ndarray) -> Columns:
    """Round a float32 matrix (outputs, width) to ``w ~ scale * q``, with a scale for each output."""
    scales = _steps(np.abs(matrix).max(axis=1) / LARGEST)
    return Columns(np.rint(matrix / scales[:, None]).astype(np.int8).T.copy(), scales)
