"""Bodies of Loop and Scan in the experiment: what enters them, and what leaves them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.experiment.known import Known, UnknownError, attribute

if TYPE_CHECKING:
    from trueport.graphs.audit.experiment.evaluator import Evaluator
    from trueport.graphs.audit.view import View

MOST_TURNS = 64
"""Turns of a loop; those of masks are rows of the batch, or layers."""


def first_turn(view: View, value: ir.Value, outer: Known) -> Known:
    """What an input of a body is in the first turn: the state as it is given, or the first slice.

    Args:
        view: the graph.
        value: the body's input.
        outer: what the node was given for it.
    """
    node = view.parents[id(value.graph)]
    place = list(value.graph.inputs).index(value)  # type: ignore[union-attr]
    if node.op_type != "Scan" or outer.score:
        return outer
    states = len(node.inputs) - int(attribute(node, "num_scan_inputs", 0))
    return outer if place < states else Known(_slice(node, outer.array, place - states, 0))


def _slice(node: ir.Node, array: Any, index: int, turn: int) -> Any:
    axes = attribute(node, "scan_input_axes") or []
    if any(attribute(node, "scan_input_directions") or []):
        raise UnknownError
    return np.take(array, turn, axis=int(axes[index]) if index < len(axes) else 0)


def outcomes(outer: Evaluator, node: ir.Node) -> list[Known]:
    """The outputs of a Loop or a Scan, turn by turn.

    Raises:
        UnknownError: they depend on hidden states, or there are too many turns.
    """
    body = node.attributes["body"].as_graph()
    given = [None if value is None else outer.of(value) for value in node.inputs]
    loop = node.op_type == "Loop"
    scanned = 0 if loop else int(attribute(node, "num_scan_inputs", 0))
    states = [known for known in (given[2:] if loop else given[: len(given) - scanned]) if known is not None]
    slices = [] if loop else [known for known in given[len(given) - scanned :] if known is not None]
    turns = _turns(node, given, slices)
    if turns > MOST_TURNS or any(known.score for known in slices):
        raise UnknownError
    made: list[list[Any]] = [[] for _ in body.outputs[len(states) + loop :]]
    goes_on = not loop or given[1] is None or bool(np.all(given[1].array))
    for turn in range(turns if goes_on else 0):
        entering = [Known(np.int64(turn)), Known(np.bool_(True))] if loop else []
        entering += states
        entering += [Known(_slice(node, known.array, index, turn)) for index, known in enumerate(slices)]
        own = {id(value): known for value, known in zip(body.inputs, entering, strict=True)}
        inner = outer.within(body, own)
        left = [inner.of(value) for value in body.outputs]
        if loop and not bool(np.all(left[0].array)):
            turns = turn
        states = left[loop : loop + len(states)]
        for stack, known in zip(made, left[loop + len(states) :], strict=True):
            if known.score:
                raise UnknownError
            stack.append(known.array)
        if turns == turn:
            break
    if any(not stack for stack in made) or any(attribute(node, "scan_output_axes") or []):
        raise UnknownError
    return [*states, *(Known(np.stack(stack)) for stack in made)]


def _turns(node: ir.Node, given: list[Known | None], slices: list[Known]) -> int:
    if node.op_type == "Loop":
        if given[0] is None or given[0].score:
            raise UnknownError
        return int(np.asarray(given[0].array).item())
    axes = attribute(node, "scan_input_axes") or [0]
    if not slices:
        raise UnknownError
    return int(np.shape(slices[0].array)[int(axes[0])])
