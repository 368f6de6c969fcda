"""Lengths of the export's sample that became constants."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.bodies import inner_graphs
from trueport.graphs.audit.experiment.inputs import batch_axes
from trueport.graphs.audit.experiment.judge import lengths
from trueport.graphs.audit.experiment.known import MISFITS, UnknownError
from trueport.graphs.audit.rule import Rule

if TYPE_CHECKING:
    from trueport.graphs.audit.experiment.evaluator import Evaluator
    from trueport.graphs.audit.report import Finding
    from trueport.graphs.audit.shapes import Shape
    from trueport.graphs.audit.view import View

Walks = list[tuple["Evaluator", set[int]]]
OPEN = (1 << 31) - 1
"""Ends from here on mean "to the end"."""
MEETS = {"Add", "Sub", "Mul", "Where", "And", "Or"}
"""Operators in which a mask of the sample's length meets values of any length."""

ON_THE_WAY = {"Transpose", "Reshape", "Cast", "Identity", "Mul", "Div", "Add", "Split", "Slice", "Concat", "Neg"}
"""Operators between the axes of heads and the product of queries and keys, rotary embedding included."""
FAR = 12
"""How many of them."""


def check(rule: Rule, view: View) -> Iterator[Finding]:
    """Only in a graph whose inputs have an axis of any length."""
    if not any(isinstance(size, str) for value in view.model.graph.inputs for size in view.shape(value) or ()):
        return
    walks = lengths(view)
    stored = _without_inputs(view)
    for node in view.nodes:
        words = ""
        if node.op_type == "Reshape":
            words = _reshape(view, node) or _part(view, node, walks)
        elif node.op_type == "Expand":
            words = _expand(view, node)
        elif node.op_type == "Slice":
            words = _slice(view, node)
        elif node.op_type in MEETS:
            words = _meets(view, node, stored, walks)
        elif node.op_type == "Gather":
            words = _picks(view, node)
        elif node.op_type == "Concat":
            words = _grows(view, node)
        if words:
            yield rule.finding(view, node, words)


def _reshape(view: View, node: ir.Node) -> str:
    """The target's fixed sizes hold more than the input's fixed axes do: the rest is a length or a batch."""
    target, given = view.array(node.inputs[1]), view.shape(node.inputs[0])
    if target is None or given is None or not any(isinstance(size, str) for size in given):
        return ""
    sizes = [int(size) for size in target.flat]
    if 0 in sizes:
        return ""  # copied axes may be dynamic themselves
    if _joins_rows(view, node, sizes, given):
        return f"Reshape of {_words(given)} to {sizes} joins all rows to one, which attend each other"
    wanted = math.prod(size for size in sizes if size > 0)
    static = math.prod(size for size in given if isinstance(size, int))
    if any(size is None for size in given) or (-1 in sizes and static % wanted == 0):
        return ""
    if -1 not in sizes or wanted > static:
        return f"Reshape to {sizes} fixes an axis of its input {_words(given)}"
    return ""


def _joins_rows(view: View, node: ir.Node, sizes: list[int], given: Shape) -> bool:
    """A batch of 1 in front of what queries and keys are made of, and -1 for all rows' tokens."""
    free = [size for size in given if isinstance(size, str)]
    if sizes[:1] != [1] or -1 not in sizes or len(free) < 2 or given[0] not in batch_axes(view):
        return False
    products = {id(site.node if site.scores is None else site.scores) for site in view.sites}
    level = list(node.outputs)
    for _ in range(FAR):
        users = {id(use.node): use.node for value in level for use in value.uses()}
        if users.keys() & products:
            return True
        level = [value for user in users.values() if user.op_type in ON_THE_WAY for value in user.outputs]
    return False


def _part(view: View, node: ir.Node, walks: Walks) -> str:
    """A stored number among computed ones in the target: elements do not fit, and would with the length in its place."""
    target = node.inputs[1].producer() if node.inputs[1] is not None else None
    if target is None or target.op_type != "Concat":
        return ""
    arrays = [view.array(part) for part in target.inputs]
    stored = {int(array.flat[0]) for array in arrays if array is not None and array.size == 1}
    if not any(array is None for array in arrays):
        return ""
    for size in stored:
        fits = [_fits_with(walk, node, size, tokens) for walk, tokens in walks] if size > 1 else []
        if any(fit is False for fit in fits) and all(fit is not None for fit in fits):
            return f"Reshape to a stored {size} and sizes that are computed: it stands where the length should"
    return ""


def _fits_with(walk: Evaluator, node: ir.Node, size: int, tokens: set[int]) -> bool | None:
    """Whether a Reshape's elements fit; false where one of ``tokens`` in the place of ``size`` helps, None where not."""
    given = walk.shape(node.inputs[0])
    try:
        target = [] if node.inputs[1] is None else [int(number) for number in walk.of(node.inputs[1]).array]
    except (UnknownError, *MISFITS):
        return None
    if given is None or any(number < 1 for number in target):
        return None
    count, whole = math.prod(given), math.prod(target)
    if count == whole:
        return True
    return False if any(whole // size * length == count for length in tokens) else None


def _expand(view: View, node: ir.Node) -> str:
    """A mask's axis of any length is stretched to a fixed one."""
    target, given = view.array(node.inputs[1]), view.shape(node.inputs[0])
    if target is None or given is None or id(node.inputs[0]) not in view.masked:
        return ""
    sizes = [int(size) for size in target.flat]
    pairs = zip(reversed(sizes), reversed(given), strict=False)
    fixed = any(isinstance(axis, str) and size > 1 for size, axis in pairs)
    return f"Expand of a mask of {_words(given)} to {sizes} fixes its length" if fixed else ""


def _slice(view: View, node: ir.Node) -> str:
    """A fixed number of entries, more than one, out of a mask's axis of any length."""
    inputs = [*node.inputs, None, None]
    starts, ends, axes, steps = (view.array(value) for value in inputs[1:5])
    given = view.shape(node.inputs[0])
    if starts is None or ends is None or given is None or id(node.inputs[0]) not in view.masked:
        return ""
    if steps is not None and (steps != 1).any():
        return ""
    places = range(len(starts)) if axes is None else [int(axis) for axis in axes.flat]
    for start, end, axis in zip(starts.flat, ends.flat, places, strict=False):
        whole = start >= 0 and end - start > 1 and end < OPEN
        if whole and -len(given) <= axis < len(given) and isinstance(given[axis], str):
            return f"Slice takes entries {start} to {end} of a mask's axis {given[axis]}"
    return ""


def _picks(view: View, node: ir.Node) -> str:
    """Stored places, more than one, out of a mask's axis of any length."""
    places, given = view.array(node.inputs[1]), view.shape(node.inputs[0])
    axis = node.attributes.get("axis")
    at = 0 if axis is None else int(axis.value)
    if places is None or places.size < 2 or given is None or id(node.inputs[0]) not in view.masked:
        return ""
    free = -len(given) <= at < len(given) and isinstance(given[at], str) and at not in (0, -len(given))
    return f"Gather takes {places.size} stored places of a mask's axis {given[at]}" if free else ""


def _grows(view: View, node: ir.Node) -> str:
    """A past of one token, as the sample's was, that is given back longer: no second step can be made with it.

    Fixed pasts of more tokens are caches that the caller cuts.
    """
    axis = node.attributes.get("axis")
    if axis is None or len(node.inputs) < 2 or not node.outputs[0].is_graph_output():
        return ""
    for value in node.inputs:
        shape = view.shape(value) if value is not None and value.is_graph_input() else None
        past = value is not None and ("past" in (value.name or "") or "cache" in (value.name or ""))
        if past and shape is not None and -len(shape) <= axis.as_int() < len(shape) and shape[axis.as_int()] == 1:
            return f"the past {value.name} is of 1 token alone, and comes back longer" if value is not None else ""
    return ""


def _without_inputs(view: View) -> set[int]:
    """Ids of what is computed from stored numbers alone, of the sizes of no input either: folded by no exporter yet."""
    found: set[int] = set()
    for node in view.nodes:
        known = [value is None or id(value) in found or view.array(value) is not None for value in node.inputs]
        if node.inputs and all(known) and not inner_graphs(node) and not node.op_type.startswith("Random"):
            found.update(map(id, node.outputs))
    return found


def _stored(view: View, value: ir.Value | None, stored: set[int], walks: Walks) -> np.ndarray | None:
    """What a graph stores, or computes from what it stores."""
    if value is None or id(value) not in stored:
        return view.array(value)
    try:
        return walks[0][0].of(value).array if walks else None
    except (UnknownError, *MISFITS):
        return None


def _meets(view: View, node: ir.Node, stored: set[int], walks: Walks) -> str:
    """A stored mask with fixed lengths over values whose axes are free, or a stored triangle over anything computed."""
    shapes = [view.shape(value) for value in node.inputs]
    for index, value in enumerate(node.inputs):
        array = _stored(view, value, stored, walks)
        shapes[index] = own = shapes[index] if array is None else tuple(array.shape)
        if array is None or own is None or len(own) < 2:
            continue
        others = [shape for shape in shapes if shape is not None and shape is not own and len(shape) >= 2]
        for size, free in ((own[axis], other[axis]) for other in others for axis in (-1, -2)):
            if isinstance(size, int) and size > 1 and isinstance(free, str):
                return f"a stored mask of shape {list(own)} meets the axis {free} of any length"
        computed = any(view.array(other) is None and id(other) not in stored for other in node.inputs)
        if _triangle(array) and computed:
            return f"a causal mask of shape {list(own)} is stored, for sequences of {own[-1]} tokens alone"
    return ""


def _triangle(array: np.ndarray) -> bool:
    """Whether a stored mask says one thing up to the diagonal and another behind it."""
    if (
        array.ndim < 2
        or array.shape[-1] != array.shape[-2]
        or array.shape[-1] < 2
        or array.size != array.shape[-1] ** 2
    ):
        return False
    square = array.reshape(array.shape[-2:])
    lower = np.tril(np.ones(square.shape, dtype=bool))
    past, future = square[lower], square[~lower]
    return bool((past == past[0]).all() and (future == future[0]).all() and past[0] != future[0])


def _words(shape: Shape) -> str:
    return "[" + ", ".join("?" if size is None else str(size) for size in shape) + "]"


BAKED_LENGTH = Rule(
    "baked-length",
    "The sample's length is part of the graph",
    "Export again with dynamic axes; where that changes nothing, the model reads a length as a Python number.",
    check,
)
