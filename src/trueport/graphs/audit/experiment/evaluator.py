"""Walking through a graph with numbers: masks are worked out, and whatever is a hidden state counts as one number."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.bodies import inner_graphs
from trueport.graphs.audit.experiment.arithmetic import compute
from trueport.graphs.audit.experiment.known import MISFITS, Known, UnknownError, attribute, bounded
from trueport.graphs.audit.experiment.loops import first_turn, outcomes

if TYPE_CHECKING:
    from trueport.graphs.audit.view import View

MOST_NODES = 100_000
"""Nodes that one experiment may compute, those of a loop once for each turn; a model of 100 layers needs some thousand."""
DEAR = 1000
"""Elements that cost as much as a node does by itself."""
LARGEST_TABLE = 1 << 16
"""Entries of a stored table that counts as part of a mask, as position biases do; words are hidden states."""
LAYOUT = {"Reshape", "Expand", "Transpose", "Unsqueeze", "Squeeze", "Flatten", "Slice", "Gather", "Tile", "Pad",
          "GatherElements", "GatherND", "Split", "Trilu"}  # fmt: skip
"""Operators that move elements, and leave a score that is one number what it is."""
MOVES_LITTLE = {"Reshape", "Expand", "Flatten"}
"""Those behind which a masked score's last axis is still the keys: heads are folded into the batch, or stretched."""
PRODUCTS = {"MatMul", "Einsum", "FusedMatMul", "Gemm"}
"""Products with a hidden state are hidden states or scores, whatever the other factor is."""
MOST_MOVES = 256
"""Values whose sizes are worked out one by one."""
MOST_AXES = 4
"""Axes of scores: batch, heads, queries, keys. A mask that has them all needs no more."""
QUANTISES = {"DynamicQuantizeLinear", "QuantizeLinear", "DequantizeLinear"}
"""Operators that write hidden states and scores in another way."""
JUDGES = {"Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "Not", "And", "Or", "Xor", "ArgMax", "ArgMin", "TopK",
          "NonZero", "OneHot", "Compress"}  # fmt: skip
"""Operators whose result depends on which hidden state it is."""


class Budget:
    """What one experiment may still cost; all its walks share it.

    Args:
        left: nodes that may be computed, a node with ``DEAR`` elements counting as two.
    """

    def __init__(self, left: int = MOST_NODES) -> None:
        self.left = left

    def spend(self, elements: int = 0) -> None:
        """Note one node, and the elements of its result.

        Raises:
            UnknownError: nothing is left.
        """
        self.left -= 1 + elements // DEAR
        if self.left < 0:
            raise UnknownError


class Evaluator:
    """Works out values of one graph for given inputs.

    Args:
        view: the graph.
        given: what values are, by id: inputs, and the products of queries and keys.
        axes: the size of every named axis.
        shapes: those of the inputs, by name.
        score: the number that hidden states, scores among them, count as.
        budget: what may be computed.
        taken: the branch of an If that hidden states decide about.

    Attributes:
        guessed: whether there was such an If.
    """

    def __init__(
        self, view: View, given: Mapping[int, Known], axes: Mapping[str, int],
        shapes: Mapping[str, tuple[int, ...]], score: float, budget: Budget, *, taken: bool = True,
    ) -> None:  # fmt: skip
        self.view = view
        self.axes = axes
        self.shapes = shapes
        self.score = Known(np.float32(score), True)
        self._known: dict[int, Known | None] = dict(given)
        self.budget = budget
        self.taken = taken
        self.guessed = False
        self._moved_sizes: dict[int, list[int] | None] = {}

    def within(self, body: ir.Graph, entering: Mapping[int, Known]) -> Evaluator:
        """A walk through one turn of a body, whose inputs are ``entering``; what was known in here is forgotten."""
        nodes = list(ir.traversal.RecursiveGraphIterator(body))
        own = {id(value) for node in nodes for value in node.outputs}
        own |= {id(value) for node in nodes for graph in inner_graphs(node) for value in graph.inputs}
        self.budget.spend(10 * (len(nodes) + len(self._known)))
        outside = {key: known for key, known in self._known.items() if known is not None and key not in own}
        known = {**outside, **entering}
        score = float(self.score.array)
        return Evaluator(self.view, known, self.axes, self.shapes, score, self.budget, taken=self.taken)

    def of(self, value: ir.Value) -> Known:
        """What a value is.

        Raises:
            UnknownError: it depends on something that the experiment cannot work out.
        """
        waiting = [value]
        opened: set[int] = set()
        while waiting:
            current = waiting[-1]
            if id(current) in self._known:
                waiting.pop()
                continue
            needs = [need for need in self._needs(current) if id(need) not in self._known]
            if needs and id(current) not in opened:
                opened.add(id(current))
                waiting += needs
                continue
            waiting.pop()
            self.budget.spend()
            try:
                self._compute(current)
            except (UnknownError, *MISFITS):
                self._known[id(current)] = None
        found = self._known[id(value)]
        if found is None:
            raise UnknownError
        return found

    def _needs(self, value: ir.Value) -> Iterator[ir.Value]:
        node = value.producer()
        outer = self.view.entering(value)
        if outer is not None:
            yield outer
        if node is None or self._hidden(node) or self.view.array(value) is not None:
            return
        if node.op_type == "Shape" and self.shape(node.inputs[0]) is not None:
            return
        yield from (operand for operand in node.inputs if operand is not None)
        if node.op_type == "If":
            place = list(node.outputs).index(value)
            yield from (branch.outputs[place] for branch in inner_graphs(node))

    def _compute(self, value: ir.Value) -> None:
        """Note what ``value`` is, its needs being known as far as they can be."""
        node, stored, outer = value.producer(), self.view.array(value), self.view.entering(value)
        if stored is not None:
            self._known[id(value)] = Known(stored)
        elif outer is not None:
            self._known[id(value)] = self._entering(value, outer)
        elif node is None:
            self._known[id(value)] = self._source(value)
        elif self._hidden(node):
            self._known[id(value)] = self.score
        elif node.op_type == "Shape" and (shape := self.shape(node.inputs[0])) is not None:
            cut = slice(attribute(node, "start", 0), attribute(node, "end"))
            self._known[id(value)] = Known(np.array(shape[cut], dtype=np.int64))
        elif node.op_type == "If":
            self._known[id(value)] = self._branch(node, value)
        elif node.op_type in ("Loop", "Scan"):
            for output, found in zip(node.outputs, outcomes(self, node), strict=False):
                self._known[id(output)] = found
        else:
            for output, found in zip(node.outputs, self._operator(node), strict=False):
                self._known[id(output)] = found
        self._known.setdefault(id(value), None)

    def _operator(self, node: ir.Node) -> list[Known]:
        operands = [None if operand is None else self._known.get(id(operand)) for operand in node.inputs]
        if node.op_type in PRODUCTS and any(operand is not None and operand.score for operand in operands):
            return [self.score] * len(node.outputs)
        if any(found is None and operand is not None for found, operand in zip(operands, node.inputs, strict=True)):
            raise UnknownError
        arrays: list[Any] = [None if operand is None else operand.array for operand in operands]
        scores = [operand for operand in operands if operand is not None and operand.score]
        if not scores:
            return [Known(array) for array in self._computed(node, arrays)]
        if node.op_type in JUDGES or node.op_type in ("Shape", "Size"):
            raise UnknownError
        if node.domain not in ("", "ai.onnx") or node.op_type in QUANTISES:
            if any(np.ndim(score.array) > 1 for score in scores):
                raise UnknownError  # what a mask adds may be cut off
            return [self.score] * len(node.outputs)
        if node.op_type == "Concat":
            return [self._joined(node, [operand for operand in operands if operand is not None])]
        if node.op_type.startswith("Reduce"):
            if not np.ndim(arrays[0]):
                return [scores[0]]
            arrays[0] = self._full(node.inputs[0], arrays[0])
        if node.op_type in LAYOUT:
            return self._moved(node, scores[0], arrays)
        return [Known(array, True) for array in self._computed(node, arrays)]

    def _computed(self, node: ir.Node, arrays: list[Any]) -> list[Any]:
        found = compute(node, arrays)
        self.budget.spend(sum(array.size for array in found))
        return found

    def _moved(self, node: ir.Node, score: Known, arrays: list[Any]) -> list[Known]:
        """Scores in another layout, of which only their mask's axes matter; those that are cut have all their axes."""
        if np.ndim(score.array) == 1 and node.op_type in LAYOUT:
            return [self.score] * len(node.outputs)  # a bias or a scale of hidden states: a mask has more axes
        if np.ndim(score.array) and node.op_type not in MOVES_LITTLE:
            whole = self._full(node.inputs[0], arrays[0])
            if node.op_type != "Transpose":  # which moves axes of one entry as well as those of all
                shape = self.shape(node.inputs[0])
                if shape is None or len(shape) != np.ndim(whole):
                    raise UnknownError
                bounded(*shape)
                whole = np.broadcast_to(whole, shape)
            return [Known(array, True) for array in self._computed(node, [whole, *arrays[1:]])]
        return [score] * len(node.outputs)

    def _full(self, value: ir.Value | None, array: Any) -> Any:
        """A masked score with all its axes, of which a mask may have fewer.

        Raises:
            UnknownError: how many there are is not known.
        """
        shape = self.shape(value)
        if np.ndim(array) >= MOST_AXES:
            return array
        if shape is None or len(shape) < np.ndim(array):
            raise UnknownError
        return np.reshape(array, (1,) * (len(shape) - np.ndim(array)) + np.shape(array))

    def _joined(self, node: ir.Node, parts: list[Known]) -> Known:
        """Scores beside each other; along the keys the masked ones, where others have no mask or are one more key."""
        masked = [part for part in parts if np.ndim(part.array) > 1]
        if not masked:
            return parts[0] if len(parts) == 1 or parts[0].score else self.score
        if not masked[0].score:
            raise UnknownError
        shapes = [self.shape(value) for value in node.inputs]
        axes = max(len(shape) if shape is not None else np.ndim(masked[0].array) for shape in shapes)
        if attribute(node, "axis", 0) not in (-1, axes - 1):
            return Known(self._stacked(node, parts, shapes), True)
        masked = [masked[0], *(part for part in masked[1:] if np.shape(part.array)[-1] != 1)]
        if len(masked) > 1:
            raise UnknownError
        return masked[0]

    def _stacked(self, node: ir.Node, parts: list[Known], shapes: list[list[int] | None]) -> Any:
        """Scores of several heads, queries or rows, each with the mask that it has."""
        whole = []
        for value, part, shape in zip(node.inputs, parts, shapes, strict=True):
            if shape is None:
                raise UnknownError
            array = self._full(value, part.array) if np.ndim(part.array) else part.array
            bounded(*shape)
            whole.append(np.broadcast_to(array, shape))
        return self._computed(node, whole)[0]

    def _branch(self, node: ir.Node, value: ir.Value) -> Known:
        """The branch that an If takes."""
        place = list(node.outputs).index(value)
        branches = {name: node.attributes[f"{name}_branch"].as_graph().outputs[place] for name in ("then", "else")}
        condition = self._known.get(id(node.inputs[0]))
        unknown = condition is None or condition.score
        self.guessed |= unknown
        taken = self.taken if condition is None or unknown else bool(np.asarray(condition.array).all())
        found = self._known.get(id(branches["then" if taken else "else"]))
        if found is None:
            raise UnknownError
        return found

    def taken_by(self, node: ir.Node) -> ir.Graph:
        """The branch that an If takes.

        Raises:
            UnknownError: hidden states decide about it, or something that cannot be worked out.
        """
        assert node.inputs[0] is not None
        condition = self.of(node.inputs[0])
        if condition.score:
            raise UnknownError
        return node.attributes["then_branch" if np.asarray(condition.array).all() else "else_branch"].as_graph()

    def _entering(self, value: ir.Value, outer: ir.Value) -> Known:
        """An input of a body in its first turn."""
        found = self._known.get(id(outer))
        if found is None:
            raise UnknownError
        return first_turn(self.view, value, found)

    def _source(self, value: ir.Value) -> Known | None:
        """A value that no node makes: a loop's counter and condition in the first turn, or numbers from outside."""
        graph = value.graph
        if graph is not None and id(graph) in self.view.parents and self.view.parents[id(graph)].op_type == "Loop":
            return Known(np.bool_(True)) if list(graph.inputs).index(value) else Known(np.int64(0))
        return self.score if value.dtype is not None and value.dtype.is_floating_point() else None

    def _hidden(self, node: ir.Node) -> bool:
        """Whether a node gives hidden states."""
        if node.op_type in ("Shape", "Size"):
            return False
        if node.op_type == "Gather" and self.view.is_weight(node.inputs[0]):
            shape = self.view.shape(node.inputs[0]) or ()
            sizes = [size for size in shape if isinstance(size, int)]
            return len(sizes) < len(shape) or int(np.prod(sizes)) > LARGEST_TABLE
        return self.view.stops(node)

    def shape(self, value: ir.Value | None) -> list[int] | None:
        """The sizes of a value that is not worked out: as declared, or as they follow from the inputs'; None if unknown."""
        if value is None:
            return None
        shape = self.view.shape(value)
        sizes = (
            None if shape is None else [size if isinstance(size, int) else self.axes.get(str(size)) for size in shape]
        )
        if sizes is not None and all(size is not None for size in sizes):
            return [int(size) for size in sizes if size is not None]
        inferred = self.view.sized(value, self.shapes, self.axes)
        if inferred is None and id(value) not in self._moved_sizes:
            self._moved_sizes[id(value)] = None  # against circles, and deep ways
            self._moved_sizes[id(value)] = self._sizes_behind(value)
        return self._moved_sizes.get(id(value)) if inferred is None else inferred

    def _sizes_behind(self, value: ir.Value) -> list[int] | None:
        """The sizes of what an operator moves elements to; the inference gives up where a Reshape's target is computed."""
        node = value.producer()
        if node is None or node.op_type not in LAYOUT or len(self._moved_sizes) > MOST_MOVES:
            return None
        given = self.shape(node.inputs[0])
        if given is None:
            return None
        try:
            bounded(*given)
            further = [None if part is None else self.of(part).array for part in node.inputs[1:]]
            found = compute(node, [np.broadcast_to(np.bool_(False), given), *further])
        except UnknownError:
            return None
        return list(np.shape(found[list(node.outputs).index(value)]))
