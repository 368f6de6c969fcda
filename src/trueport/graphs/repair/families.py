"""Masks of every family, and inputs for any graph that takes one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.experiment.inputs import ROWS, batch_axes, padding_masks, sizes_of, taken
from trueport.graphs.audit.view import MASK_NAME
from trueport.graphs.loading import GraphError

if TYPE_CHECKING:
    from trueport.graphs.audit.view import View

HEADS = (1, 2, 3, 4, 6, 8, 12, 16, 20, 24, 32, 40, 64)
"""Heads that models have."""
MOST_ELEMENTS = 1 << 28
"""Elements of the largest input that is made up: 1 GB in float32."""
FAMILIES = ("none hidden", "right", "left", "both sides", "holes", "random", "one row empty", "all rows empty")
"""The masks of the proof; all but the first keep their shape and draw their places."""


def draw(family: str, rng: np.random.Generator, rows: int, keys: int) -> np.ndarray:
    """One mask of a family: bool (rows, keys), true is visible."""
    places = np.arange(keys)
    first = rng.integers(1, max(keys - 1, 2), rows)[:, None]
    if family == "right":
        return places < first
    if family == "left":
        return places >= first
    if family == "both sides":
        return (places >= first // 2) & (places < np.maximum(first, first // 2 + 1))
    if family == "holes":
        hole = rng.integers(1, max(keys - 1, 2), rows)[:, None]
        return (places != hole) & (places != first)
    if family == "random":
        return rng.random((rows, keys)) < 0.5
    mask = np.ones((rows, keys), dtype=bool)
    if family == "one row empty":
        mask[rng.integers(rows)] = False
    elif family == "all rows empty":
        mask[:] = False
    return mask


def feeds(
    view: View, *, seed: int, rounds: int, length: int = 7, past: int = 0, folded: int = 1
) -> Iterator[tuple[str, dict[str, np.ndarray]]]:
    """Families and inputs for the whole graph, ``rounds`` of each family.

    Token ids stay inside the tables that are read with them, positions count up, other floats are N(0, 1).

    Args:
        view: the graph.
        seed: of all that is drawn.
        rounds: masks of each family.
        length: new tokens.
        past: tokens of the past.
        folded: heads that lie in the batch axis of inputs whose batch has another name than the mask's.
    """
    rng = np.random.default_rng(seed)
    rows, keys = _mask_sizes(view, length, past)
    for _ in range(rounds):
        for family in FAMILIES:
            mask = draw(family, rng, rows, keys)
            yield (
                family,
                {value.name or "": _fill(view, value, mask, rng, length, past, folded) for value in taken(view)},
            )


def folds(view: View) -> tuple[int, ...]:
    """How many heads may lie in the batch axis of other inputs than the mask: 1 where its name is everywhere the same."""
    return HEADS if len(batch_axes(view)) > 1 else (1,)


def _mask_sizes(view: View, length: int, past: int) -> tuple[int, int]:
    """Rows and keys of the mask inputs, which may be fixed."""
    batches = batch_axes(view)
    masks = (value for value in taken(view) if MASK_NAME.search(value.name or "") and len(value.shape or ()) > 1)
    sizes = max((_sizes(value, batches, length, past) for value in masks), key=lambda sizes: sizes[0], default=None)
    if sizes is not None:
        return sizes[0], sizes[-1]
    first = next((_sizes(value, batches, length, past)[0] for value in taken(view) if len(value.shape or ()) > 1), ROWS)
    return first, past + length


def padding_of(view: View, inputs: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The padding mask among a graph's inputs, bool (rows, keys); None without one that has these two axes."""
    names = [value.name or "" for value in padding_masks(view)]
    found = next((inputs[name] for name in names if name in inputs and inputs[name].ndim > 1), None)
    return None if found is None else found.reshape(len(found), -1, found.shape[-1])[:, 0].astype(bool)


def _sizes(value: ir.Value, batches: frozenset[str], length: int, past: int) -> list[int]:
    """Sizes of an input's axes.

    Raises:
        GraphError: nobody could fill it.
    """
    name = value.name or ""
    sizes = sizes_of(value, batches, length, past)
    if math.prod(sizes) > MOST_ELEMENTS:
        raise GraphError(
            f"the input {name} has {math.prod(sizes):,} elements, too many to make them up for the proof",
            "Name the axes that may be shorter, or give --no-proof.",
        )
    return sizes


def _mask_batch(view: View) -> str:
    """The name of the mask's batch axis."""
    masks = (value for value in taken(view) if MASK_NAME.search(value.name or "") and value.shape is not None)
    return next((str(value.shape[0]) for value in masks if value.shape), "")


def _fill(
    view: View, value: ir.Value, mask: np.ndarray, rng: np.random.Generator, length: int, past: int, folded: int
) -> np.ndarray:
    name, dtype = value.name or "", (value.dtype or ir.DataType.FLOAT).numpy()
    batches = batch_axes(view)
    shape = _sizes(value, batches, length, past)
    if folded > 1 and value.shape and str(value.shape[0]) in batches - {_mask_batch(view)}:
        shape[0] *= folded
    if MASK_NAME.search(name):
        return _shaped(mask, shape, past).astype(dtype)
    if len(shape) > 1 and (name == "causal" or "causal_mask" in name):
        return np.broadcast_to(np.tril(np.ones(shape[-2:], bool), past), shape).astype(dtype)
    if "position" in name and len(shape) == 2:
        return np.broadcast_to(past + np.arange(shape[1]), shape).astype(dtype)
    if dtype.kind == "b":
        return rng.random(shape) < 0.5
    if value.dtype == ir.DataType.STRING:
        raise GraphError(f"the input {name} is of strings, which cannot be made up for the proof", "Give --no-proof.")
    if dtype.kind in "iu":
        low, high = _range(view, value, dtype)
        return rng.integers(low, high, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


def _shaped(mask: np.ndarray, shape: list[int], past: int) -> np.ndarray:
    """A mask (rows, keys) in the axes that the input has; of one axis lengths, of none whether any key is seen."""
    if not shape:
        return np.asarray(mask.any())
    if len(shape) == 1:
        ends = np.where(mask.any(axis=1), mask.shape[1] - mask[:, ::-1].argmax(axis=1), 0)
        return np.concatenate([ends, mask.argmax(axis=1)]) if shape[0] == 2 * len(mask) else mask.sum(axis=1)
    whole = mask.reshape(len(mask), *[1] * (len(shape) - 2), mask.shape[1])
    return np.ascontiguousarray(np.broadcast_to(whole[: shape[0], ..., : shape[-1]], shape))


def _range(view: View, value: ir.Value, dtype: np.dtype) -> tuple[int, int]:
    """Numbers that an integer input may hold: rows of the tables that it is looked up in."""
    tables = [
        use.node.inputs[0].const_value
        for use in value.uses()
        if use.node.op_type == "Gather" and use.idx == 1 and use.node.inputs[0] is not None
    ]
    rows = [int(table.shape.numpy()[0]) for table in tables if table is not None and len(table.shape) == 2]
    if rows:
        return 0, min(rows)
    if dtype.itemsize == 1:
        limits = np.iinfo(dtype)
        return int(limits.min), int(limits.max) + 1
    return 0, 2
