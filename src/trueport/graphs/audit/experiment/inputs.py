"""Inputs of any graph: sizes for its axes, masks that differ from row to row, and plain numbers for the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.experiment.known import Known, UnknownError, bounded
from trueport.graphs.audit.view import MASK_NAME

if TYPE_CHECKING:
    from trueport.graphs.audit.view import View

ROWS, PAST = 3, 3
"""Batch, and tokens of the past where the graph takes one."""
LENGTHS = (7, 11)
"""New tokens; where an axis follows them, it is that of the keys."""
PADDING = re.compile(
    r"(^|[._/])\w*(attention_?mask|attn_mask|padding_?mask|input_mask)([._:]\d+)?$|(^|[./])mask([._:]\d+)?$",
    re.IGNORECASE,
)
"""Mask inputs that say what is padding, among all that are called masks."""
SURE = re.compile(r"attention_?mask([._:]\d+)?$", re.IGNORECASE)
"""Those in which, by every exporter's convention, 1 is a token and 0 padding; others have it either way, and so have all
masks with an axis of queries."""
OTHERS = re.compile(r"causal|global", re.IGNORECASE)
"""Masks that say something else: what is in the future, and which tokens see, and are seen from, everywhere."""
NEW = re.compile(r"(input_ids|inputs_embeds|tokens|position_ids)([._:]\d+)?$")
"""Inputs with an entry for each new token."""
UNNAMED = ("None", "?")
"""What stands for an axis without a size or a name."""
TOKEN = 3
"""A token that is no padding."""


@dataclass(frozen=True)
class Encoding:
    """How a mask is written.

    Attributes:
        visible, hidden: what its entries are.
        expected: whether a graph may rightly read it so.
        added: whether its entries are numbers to add to scores.
    """

    visible: float
    hidden: float
    expected: bool
    added: bool = False


@dataclass(frozen=True)
class Trial:
    """One way to fill the inputs.

    Attributes:
        mask: which keys are real, bool (rows, keys).
        given: the inputs, by id.
        axes: the size of every named axis.
        shapes: of the inputs, by name.
        past: how many keys lie before the first query.
    """

    mask: Any
    given: dict[int, Known]
    axes: dict[str, int]
    shapes: dict[str, tuple[int, ...]]
    past: int


def taken(view: View) -> list[ir.Value]:
    """The graph's inputs, stored ones left out."""
    return [value for value in view.model.graph.inputs if value.name not in view.model.graph.initializers]


def has_past(view: View) -> bool:
    """Whether the graph takes keys and values of earlier tokens."""
    return any("past" in (value.name or "") for value in taken(view))


def runs(view: View) -> list[list[tuple[int, int]]]:
    """How many new tokens and how many earlier ones a graph may be given, in groups of two that are alike.

    A graph of single steps has a fixed number of new tokens, and is given a past.
    """
    if not has_past(view):
        return [[(length, 0) for length in LENGTHS]]
    for value in taken(view):
        if NEW.search(value.name or "") and value.shape is not None and len(value.shape) > 1:
            step = str(value.shape[1])
            if step.isdecimal():
                return [[(int(step), length) for length in LENGTHS]]
    return [[(length, past) for length in LENGTHS] for past in (0, PAST)]


def batch_axes(view: View) -> frozenset[str]:
    """The names of the batch axis: those that inputs have in front and nowhere else; heads may be folded into some."""
    front: set[str] = set()
    others: set[str] = set()
    for value in taken(view):
        names = [None if str(size).isdecimal() else str(size) for size in value.shape or ()]
        # Some operators' past has two parts in front, keys and values, and the batch behind them.
        place = 1 if len(names) == 5 and str(value.shape[0] if value.shape else "") == "2" else 0
        if len(names) > 1:
            front |= {name for name in names[place : place + 1] if name is not None}
        others |= {name for name in names[place + 1 :] if name is not None}
    return frozenset(name for name in front if name not in others or "batch" in name)


def axis_size(
    size: object, index: int, name: str, batches: frozenset[str], length: int, past: int, keys: str = ""
) -> int:
    """A number for an axis of the input ``name``; ``length`` for one of any length.

    ``keys``: the name of the mask's last axis; a past that has it holds as many tokens, as a source's does.
    """
    text = str(size)
    if isinstance(size, int) or text.isdecimal():  # some exporters write sizes as names
        return int(text)
    if text in batches or (index == 0 and text in UNNAMED):
        return ROWS
    if "past" in name and "capacity" not in text:
        return past + length if text == keys and text not in UNNAMED else past
    whole = "capacity" in text or "+" in text or "total" in text or ("past" in text and "seq" in text)
    return past + length if whole or (past and MASK_NAME.search(name)) else length


def sizes_of(value: ir.Value, batches: frozenset[str], length: int, past: int, keys: str = "") -> list[int]:
    """Numbers for all axes of an input, see ``axis_size``; a mask's queries are new tokens, where its keys are all."""
    axes, name = list(value.shape or ()), value.name or ""
    found = []
    for index, size in enumerate(axes):
        alike = str(size) == str(axes[-1]) and str(size) not in UNNAMED
        queries = len(axes) > 2 and index == len(axes) - 2 and not alike and MASK_NAME.search(name)
        found.append(axis_size(size, index, name, batches, length, 0 if queries else past, keys))
    return found


def padding_masks(view: View) -> list[ir.Value]:
    """The mask inputs that say which keys are padding: (batch, keys), or with axes of heads and queries between.

    One whose axes are not declared is among them.
    """
    batches = batch_axes(view)
    found = []
    for value in taken(view):
        name = value.name or ""
        axes = None if value.shape is None else [str(size) for size in value.shape]
        if not PADDING.search(name) or OTHERS.search(name) or (axes is not None and not 2 <= len(axes) <= 4):
            continue
        # A square is a mask of queries and keys, which is not about padding.
        square = (
            axes is not None
            and len(axes) == 2
            and axes[0] == axes[1]
            and axes[0] not in UNNAMED
            and not axes[0].isdecimal()
        )
        rows = axes is None or axes[0].isdecimal() or axes[0] in batches or axes[0] in UNNAMED
        if rows and not square:
            found.append(value)
    return found


def encodings(value: ir.Value) -> list[Encoding]:
    """How a mask may be written: 1 and 0, and as numbers to add where it is of floats; the other way round at the end."""
    dtype = value.dtype or ir.DataType.FLOAT
    found = [Encoding(1, 0, True)]
    if dtype.is_floating_point():
        lowest = -65504.0 if dtype == ir.DataType.FLOAT16 else -3.0e38
        found.append(Encoding(0, lowest, True, added=True))
    either = not SURE.search(value.name or "") or len(value.shape or ()) > 2
    return [*found, Encoding(0, 1, either)]


def trials(view: View, mask: ir.Value, encoding: Encoding, *, padded: bool = True) -> Iterator[list[Trial]]:
    """Fillings of the inputs, one list for each length of the past; of rows without padding where they are not ``padded``.

    A list holds what has to go wrong all together: every length, and both answers to inputs that say yes or no to
    something that the names do not tell.
    """
    answers = (True, False) if any(_is_open(value) for value in taken(view) if value is not mask) else (True,)
    if mask.shape is None:
        return
    for group in runs(view):
        yield [
            _trial(view, mask, encoding, length, past, answer, padded=padded)
            for length, past in group
            for answer in answers
        ]


def _is_open(value: ir.Value) -> bool:
    """Whether an input is of yes and no, and nothing tells what they mean."""
    name, kind = value.name or "", _dtype(value).kind
    if "causal" in name or "cache" in name or SURE.search(name):
        return False
    return kind == "b" or (kind in "iu" and bool(MASK_NAME.search(name)) and len(value.shape or ()) > 1)


def has_flags(view: View) -> bool:
    """Whether an input is one yes or no, and nothing tells what it means."""
    return any(_is_open(value) and all(str(size) == "1" for size in value.shape or ()) for value in taken(view))


def _trial(
    view: View, mask: ir.Value, encoding: Encoding, length: int, past: int, answer: bool, *, padded: bool
) -> Trial:
    batches = batch_axes(view)
    given: dict[int, Known] = {}
    axes: dict[str, int] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    seen = np.ones((1, 1), dtype=bool)
    keys = str(mask.shape[-1]) if mask.shape else ""
    for value in taken(view):
        name = value.name or ""
        shape = sizes_of(value, batches, length, past, keys)
        shapes[name] = tuple(shape)
        axes |= {str(size): shape[i] for i, size in enumerate(value.shape or ()) if not str(size).isdecimal()}
        if value is mask:
            seen = draw(shape[0], shape[-1]) | (not padded)
            whole = seen.reshape(len(seen), *[1] * (len(shape) - 2), seen.shape[1])
            bounded(*shape)
            whole = np.broadcast_to(np.where(whole, encoding.visible, encoding.hidden), shape)
            given[id(value)] = Known(whole.astype(_dtype(value)))
        elif _is_open(value):
            bounded(*shape)
            given[id(value)] = Known(np.full(shape, answer, _dtype(value)))
        elif (plain := _plain(value, name, shape, past)) is not None:
            given[id(value)] = Known(plain)
    return Trial(seen, given, axes, shapes, past)


def draw(rows: int, keys: int) -> Any:
    """Holes and right padding in the first row, left padding in the second, a hole near each end in the third; and so on.

    Raises:
        UnknownError: there are too few keys for that.
    """
    if keys < 6:
        raise UnknownError
    bounded(rows, keys)
    mask = np.ones((rows, keys), dtype=bool)
    for row, places in enumerate(([2, keys - 1], [0, 1], [3, keys - 2])):
        mask[row::3, places] = False
    return mask


def _dtype(value: ir.Value) -> np.dtype:
    dtype = (value.dtype or ir.DataType.FLOAT).numpy()
    return dtype if dtype.kind in "fiub" else np.dtype(np.float32)


def _plain(value: ir.Value, name: str, shape: list[int], past: int) -> Any:
    """An input that is not the mask in question; None for numbers, which count as hidden states."""
    dtype = _dtype(value)
    bounded(*shape)
    masks = bool(MASK_NAME.search(name)) or "causal" in name
    if dtype.kind == "f" and not masks:
        return None
    if "causal" in name and len(shape) >= 2:
        seen = np.broadcast_to(np.tril(np.ones(shape[-2:], bool), past), shape)
        return (np.where(seen, 0.0, -1e4) if dtype.kind == "f" else seen).astype(dtype)
    if masks:
        return np.zeros(shape, dtype) if dtype.kind == "f" and len(shape) > 2 else np.ones(shape, dtype)
    if "position" in name and not shape:
        return np.asarray(past, dtype)
    if "position" in name:
        return np.broadcast_to(past + np.arange(shape[-1] if shape else 1), shape).astype(dtype)
    if dtype.kind == "b":
        return np.full(shape, past > 0)
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    if len(shape) == 1 or not shape:
        return None  # lengths and the like, which only the caller knows
    return np.full(shape, TOKEN, dtype)
