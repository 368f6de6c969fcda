"""A graph as the rules see it: constants, what depends on which mask, attention layers, shapes."""

from __future__ import annotations

import ast
import functools
import json
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit import bodies
from trueport.graphs.audit.bodies import inner_graphs
from trueport.graphs.loading import GraphError

if TYPE_CHECKING:
    from trueport.graphs.audit.experiment.judge import Verdict
    from trueport.graphs.audit.shapes import Shape
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.softmax import Spelled

READABLE = 1 << 24
"""Elements of the largest constant that is looked into."""
PATIENCE = 20_000_000
"""Steps that all walks through one graph may take together: seconds; a real model needs some hundred thousand."""
FAR = 64
"""Values that are looked at for the dtype of what is computed from them."""
MAX_MASKS = 64
"""Mask inputs that are followed; models have three at most."""
MASK_NAME = re.compile(
    r"(^|[._/])(\w*attention_?mask|\w*padding_?mask|input_mask|mask|mask_index|attn_mask)([._:]\d+)?$", re.IGNORECASE
)
"""How exporters name the inputs that say what is padding; TensorFlow's end in ``:0``."""
SAME = {"Identity", "Cast", "CastLike", "Expand", "Reshape", "Unsqueeze", "Squeeze", "Transpose", "Tile", "Flatten"}
"""Operators that keep every element's value."""
ARITHMETIC: dict[str, Callable[..., float]] = {
    "Neg": operator.neg, "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": operator.truediv,
    "Sqrt": math.sqrt, "Min": min, "Max": max,
}  # fmt: skip
"""Operators that are worked out where every operand is one number: fills that a graph computes."""
LEARNED = {"LayerNormalization", "SkipLayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization",
           "SkipSimplifiedLayerNormalization", "EmbedLayerNormalization", "QEmbedLayerNormalization", "Conv", "Gemm",
           "MatMulInteger", "MatMulNBits", "QLinearMatMul", "LSTM", "GRU", "DynamicQuantizeMatMul"}  # fmt: skip
"""Operators that no mask passes through: behind them lie hidden states."""
ATTENTION = {"Attention", "QAttention", "MultiHeadAttention", "GroupQueryAttention", "DecoderMaskedMultiHeadAttention",
             "PackedMultiHeadAttention", "PackedAttention", "SparseAttention", "LongformerAttention"}  # fmt: skip
"""Operators that are whole attentions."""

HALF_LIMIT = 65519.0
"""What float16 still rounds to its largest number."""
EMBEDS, EMBED_MASK = {"EmbedLayerNormalization", "QEmbedLayerNormalization"}, 7
"""Operators whose second output is a mask's sums, and the mask among their inputs (ContribOperators.md)."""


class View:
    """One model, looked at.

    Args:
        model: a graph without functions.
        path: its file, beside which a config may lie.
    """

    def __init__(self, model: ir.Model, path: Path) -> None:
        self.model = model
        self.path = path
        self.nodes: list[ir.Node] = list(ir.traversal.RecursiveGraphIterator(model.graph))
        self.parents = {id(graph): node for node in self.nodes for graph in inner_graphs(node)}
        self._arrays: dict[int, np.ndarray | None] = {}
        self._sized: dict[tuple[Any, ...], dict[str, Shape]] = {}
        self._steps = 0

    @classmethod
    def open(cls, path: Path) -> View:
        """The checked file, its functions written out."""
        from onnx_ir.passes.common import InlinePass

        from trueport.graphs.loading import load

        model = load(path)
        if model.functions:
            InlinePass()(model)
        return cls(model, path)

    @functools.cached_property
    def sites(self) -> list[Site]:
        """The attention layers, in the graph's order."""
        from trueport.graphs.audit.sites import find_sites

        return find_sites(self)

    @functools.cached_property
    def experiment(self) -> Verdict:
        """Layers that see keys which a mask hides, and those that cannot be judged."""
        from trueport.graphs.audit.experiment.judge import judge

        return judge(self)

    @functools.cached_property
    def masks(self) -> dict[str, set[int]]:
        """For every mask input, the ids of the values that depend on it before they become hidden states."""
        found: dict[str, set[int]] = {}
        for value in self.model.graph.inputs:
            stored = value.name in self.model.graph.initializers
            if value.name and MASK_NAME.search(value.name) and not stored and len(found) < MAX_MASKS:
                found[value.name] = self.dependents([value])
        return found

    def step(self, count: int) -> None:
        """Refuse a graph that is made to be walked forever."""
        self._steps += count
        if self._steps > PATIENCE:
            raise GraphError(f"{self.path.name} is too tangled to be audited", "No model that Trueport knows is.")

    @functools.cached_property
    def masked(self) -> set[int]:
        """Ids of the values that depend on any mask input."""
        return set().union(*self.masks.values()) if self.masks else set()

    def dependents(
        self, values: Iterable[ir.Value], beyond: frozenset[str] = frozenset(), barriers: frozenset[int] = frozenset()
    ) -> set[int]:
        """Ids of what is computed from ``values``.

        Args:
            values: where to begin.
            beyond: operators that are not looked through, as attention, weights and shapes are not.
            barriers: ids of nodes that are not either.
        """
        seen: set[int] = set()
        waiting = list(values)
        while waiting:
            value = waiting.pop()
            if id(value) in seen:
                continue
            seen.add(id(value))
            uses = value.uses()
            self.step(1 + len(uses))
            for use in uses:
                if use.node.op_type in EMBEDS and use.idx == EMBED_MASK:
                    waiting += use.node.outputs[1:2]
                elif not self.stops(use.node) and use.node.op_type not in beyond and id(use.node) not in barriers:
                    waiting += bodies.entered(use.node, use.idx) if inner_graphs(use.node) else use.node.outputs
            if value.is_graph_output() and value.graph is not None and id(value.graph) in self.parents:
                waiting += bodies.left(self.parents[id(value.graph)], value)
        return seen

    def stops(self, node: ir.Node) -> bool:
        """Whether what leaves ``node`` is a hidden state, a size or a probability, no mask any more."""
        if node.op_type in ("Softmax", "Shape", "Size") or node.op_type in LEARNED or node.op_type in ATTENTION:
            return True
        if id(node) in self.spelled:
            return True
        if node.op_type in ("MatMul", "FusedMatMul"):
            return any(self.is_weight(value) for value in node.inputs)
        # A table that is looked up: words, positions.
        return node.op_type == "Gather" and self.is_weight(node.inputs[0])

    def entering(self, value: ir.Value) -> ir.Value | None:
        """What an input of a Loop's or Scan's body is given from outside, in its first turn; None for other values."""
        return self._entrances.get(id(value))

    @functools.cached_property
    def _entrances(self) -> dict[int, ir.Value]:
        """What enters every Loop's and Scan's body, by the id of the body's input."""
        looping = (node for node in self.nodes if node.op_type in ("Loop", "Scan"))
        return {id(value): outer for node in looping for value, outer in bodies.given(node)}

    def repeats(self, node: ir.Node) -> bool:
        """Whether a node lies in the body of a loop."""
        graph = node.graph
        while graph is not None and id(graph) in self.parents:
            parent = self.parents[id(graph)]
            if parent.op_type != "If":
                return True
            graph = parent.graph
        return False

    def source(self, value: ir.Value | None) -> ir.Value | None:
        """The value itself, or what it is inside or outside of a Loop or Scan that it comes from or enters."""
        for _ in range(16):
            node = None if value is None else value.producer()
            if value is not None and node is None and (outer := self.entering(value)) is not None:
                value = outer
            elif value is not None and node is not None and node.op_type in ("Loop", "Scan"):
                value = bodies.inside(node, value)
            else:
                break
        return value

    @functools.cached_property
    def spelled(self) -> dict[int, Spelled]:
        """Softmaxes that are written out, by the id of their last node."""
        from trueport.graphs.audit.softmax import spelled

        return {id(node): found for node in self.nodes if (found := spelled(self, node)) is not None}

    def is_weight(self, value: ir.Value | None) -> bool:
        """Whether a value is a learned matrix: a stored float tensor of two axes or more, perhaps transposed or scaled."""
        for _ in range(8):
            value = self.source(value)
            if value is None:
                return False
            if value.is_initializer() or value.const_value is not None:
                tensor = value.const_value
                shape = tensor.shape if tensor is not None else value.shape
                return shape is not None and len(shape) >= 2 and not _all_ones(shape)
            node = value.producer()
            if node is None or node.op_type not in SAME | {"DequantizeLinear", "Mul", "Constant"} or not node.inputs:
                return node is not None and node.op_type == "Constant"
            value = node.inputs[0]
        return False

    def backwards(self, values: Iterable[ir.Value | None]) -> Iterator[ir.Node]:
        """The nodes that ``values`` are computed by, up to hidden states and sizes."""
        seen: set[int] = set()
        waiting = [value for value in values if value is not None]
        while waiting:
            value = waiting.pop()
            node = value.producer()
            outer = self.entering(value)
            if outer is not None and id(outer) not in seen:
                seen.add(id(outer))
                waiting.append(outer)
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            self.step(1 + len(node.inputs))
            yield node
            if not self.stops(node):
                waiting += [value for value in node.inputs if value is not None]
                waiting += [value for graph in inner_graphs(node) for value in graph.outputs]

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """A constant's content: an initializer's, or a Constant node's; None for what is computed, or huge."""
        if value is None:
            return None
        if id(value) not in self._arrays:
            self._arrays[id(value)] = _content(value)
        return self._arrays[id(value)]

    def scalar(self, value: ir.Value | None, depth: int = 0) -> float | None:
        """The one number that all elements have, through casts, expansions and arithmetic; None for others."""
        array = self.array(value)
        if array is not None:
            if array.size and array.dtype.kind in "fiub" and (array == array.flat[0]).all():
                return float(array.flat[0])
            return None
        source = self.source(value)
        if source is not value and depth <= 16:
            return self.scalar(source, depth + 1)
        node = value.producer() if value is not None else None
        if node is None or depth > 16:
            return None
        if node.op_type == "ConstantOfShape":
            attribute = node.attributes.get("value")
            return 0.0 if attribute is None else float(attribute.as_tensor().numpy().flat[0])
        if node.op_type in SAME:
            whole = self.scalar(node.inputs[0], depth + 1)
            return whole if whole is None else narrowed(node, whole)
        if node.op_type not in ARITHMETIC:
            return None
        operands: list[float] = []
        for operand in node.inputs:
            number = self.scalar(operand, depth + 1)
            if number is None:
                return None
            operands.append(number)
        try:
            return float(ARITHMETIC[node.op_type](*operands))
        except (ArithmeticError, ValueError, TypeError):
            return None

    def module(self, node: ir.Node) -> str:
        """The path of the module that a node comes from: by metadata, or by a name like ``/layer.0/attention/Add_1``."""
        from trueport.graphs.origin import MODULE_KEY, module_path

        path = node.metadata_props.get(MODULE_KEY, "")
        if not path and "pkg.torch.onnx.name_scopes" in node.metadata_props:
            scopes = node.metadata_props["pkg.torch.onnx.name_scopes"]
            try:
                names = ast.literal_eval(scopes)
                path = module_path(scopes) or str(names[-2])
            except (ValueError, SyntaxError, IndexError, TypeError, MemoryError, RecursionError):
                path = ""
        if not path and node.name and node.name.startswith("/"):
            path = ".".join(part for part in node.name.split("/")[1:-1] if part)
        return path

    @functools.cached_property
    def inferred(self) -> tuple[dict[str, Shape], dict[str, int]]:
        """Shapes and dtypes by value name, as far as ONNX's shape inference finds them."""
        from trueport.graphs.audit.shapes import infer

        return infer(self.model)

    def dtype(self, value: ir.Value) -> ir.DataType:
        """A value's dtype, else that of the nearest floats that it is computed from; float32 where nothing tells."""
        waiting, seen = [value], {id(value)}
        for current in waiting:  # grows
            known = ir.DataType(current.dtype or self.inferred[1].get(current.name or "") or 0)
            if known.is_floating_point() or (known and current is value):
                return known
            node = current.producer()
            further = [] if node is None or len(waiting) > FAR else [v for v in node.inputs if v is not None]
            waiting += [v for v in further if id(v) not in seen]
            seen |= {id(v) for v in further}
        return ir.DataType.FLOAT

    def shape(self, value: ir.Value | None) -> Shape | None:
        """A value's shape, None where unknown; an int is a static axis, a name one of the inputs' axes."""
        if value is None or value.name is None:
            return None
        if value.const_value is not None:
            return tuple(int(size) for size in value.const_value.shape.numpy())
        return self.inferred[0].get(value.name)

    def sized(self, value: ir.Value, given: Mapping[str, tuple[int, ...]], axes: Mapping[str, int]) -> list[int] | None:
        """A value's shape where inputs have these; None where it is not known, or not wholly.

        Args:
            value: any.
            given: shapes of inputs, by name.
            axes: sizes of named axes.
        """
        from trueport.graphs.audit.shapes import infer

        key = tuple(sorted(given.items()))
        if key not in self._sized:
            self._sized[key] = infer(self.model, given, axes)[0]
        shape = self._sized[key].get(value.name or "")
        return (
            None if shape is None or not all(isinstance(size, int) for size in shape) else [int(s or 0) for s in shape]
        )

    @functools.cached_property
    def config(self) -> dict[str, Any]:
        """The model's config beside the graph, or one folder up; empty where there is none."""
        for folder in (self.path.parent, self.path.parent.parent):
            file = folder / "config.json"
            try:
                if file.is_file() and not file.is_symlink() and file.stat().st_size < 1 << 20:
                    content = json.loads(file.read_text(encoding="utf-8"))
                    if isinstance(content, dict):
                        inner = content.get("text_config")
                        return inner if isinstance(inner, dict) else content
            except (OSError, ValueError, RecursionError):
                continue
        return {}


def uncast(value: ir.Value) -> ir.Value:
    """The value before it was cast."""
    while (
        (node := value.producer()) is not None and node.op_type in ("Cast", "Identity") and node.inputs[0] is not None
    ):
        value = node.inputs[0]
    return value


def narrowed(node: ir.Node, number: float) -> float:
    """A number behind ``node``: what is past float16's limit is infinite behind a Cast to it."""
    to = node.attributes.get("to") if node.op_type == "Cast" else None
    if to is None or int(to.value) != ir.DataType.FLOAT16.value or abs(number) <= HALF_LIMIT:
        return number
    return math.copysign(math.inf, number)


def _all_ones(shape: Any) -> bool:
    return all(size == 1 for size in shape)


def _content(value: ir.Value) -> np.ndarray | None:
    tensor = value.const_value
    node = value.producer()
    if tensor is None and node is not None and node.op_type == "Constant":
        for name in ("value", "value_float", "value_int", "value_floats", "value_ints"):
            if name in node.attributes:
                attribute = node.attributes[name]
                if name != "value":
                    return np.asarray(attribute.value)
                tensor = attribute.as_tensor()
    if tensor is None or tensor.size > READABLE or tensor.dtype == ir.DataType.STRING:
        return None
    array = np.asarray(tensor.numpy())
    if isinstance(tensor, ir.ExternalTensor):
        array = array.copy()  # the file is let go again, so that a repair may write where it lies
        tensor.release()
    # bfloat16 and its like, which NumPy does not know, compute as float32.
    return array.astype(np.float32) if array.dtype.kind == "V" else array
