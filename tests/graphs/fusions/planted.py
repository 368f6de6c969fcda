"""Fusions that other tools make and that are wrong, or that a runtime refuses: planted, so that the proof has to find them.

``facts`` of each: onnxruntime 1.31.1 and 1.32.0, CPU.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from trueport.graphs.fusions.reading import attribute, made_by
from trueport.graphs.fusions.table import Applied, Fusion
from trueport.graphs.repair.builder import Builder

MICROSOFT = "com.microsoft"
BATCH_HEADS_LENGTH = (0, 2, 1, 3)
LOWEST = float(np.finfo(np.float32).min)


def planted(name: str, apply: Callable[[ir.Model], int]) -> Fusion:
    return Fusion(name, "", "", ("cpu",), "", lambda model, interface: Applied(apply(model), interface))


class Layers:
    """The Attention nodes of a graph, and what a replacement of one needs."""

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes = [node for node in model.graph if node.op_type == "Attention"]
        self.inputs = {value.name: value for value in model.graph.inputs}
        model.opset_imports[MICROSOFT] = 1

    def replace(self, node: ir.Node, make: Callable[[Builder, ir.Node], ir.Node]) -> None:
        """``make`` gives a node whose first output is (batch, length, heads · size); further outputs follow in order."""
        build = Builder(self.model, node, f"planted/{node.outputs[0].name}")
        new = make(build, node)
        node.graph.insert_before(node, new)
        query = node.inputs[0]
        split = build.op("Concat", build.op("Shape", query, start=0, end=1), build.op("Shape", query, start=2, end=3),
                         build.op("Shape", query, start=1, end=2), build.const([-1]), axis=0)  # fmt: skip
        four = build.op("Transpose", build.op("Reshape", new.outputs[0], split), perm=[*BATCH_HEADS_LENGTH])
        for old, value in zip(node.outputs, [four, *new.outputs[1:]], strict=False):
            name = old.name
            old.replace_all_uses_with(value, replace_graph_outputs=True)
            if value is not four:
                old.name, value.name = f"{name}_old", name
                value.type = old.type
        node.graph.remove(node, safe=True)


def flat(build: Builder, value: ir.Value) -> ir.Value:
    """(batch, heads, length, size) -> (batch, length, heads · size)."""
    return build.op("Reshape", build.op("Transpose", value, perm=[*BATCH_HEADS_LENGTH]), build.const([0, 0, -1]))


def bias(build: Builder, mask: ir.Value, fill: float) -> ir.Value:
    """A boolean mask as numbers to add."""
    return build.op("Where", mask, build.const(0.0, np.float32), build.const(fill, np.float32))


def multi_head(
    model: ir.Model, masks: Callable[[Layers, Builder, ir.Node], dict[int, ir.Value]], heads: int = 4
) -> int:
    """Every Attention as MultiHeadAttention, whose masks go to the given slots."""
    layers = Layers(model)

    def make(build: Builder, node: ir.Node) -> ir.Node:
        slots = dict(enumerate(flat(build, value) for value in node.inputs[:3])) | masks(layers, build, node)
        values = [slots.get(index) for index in range(max(slots) + 1)]
        return ir.node("MultiHeadAttention", values, {"num_heads": heads}, domain=MICROSOFT)

    for node in layers.nodes:
        layers.replace(node, make)
    return len(layers.nodes)


def lengths_for_a_mask(model: ir.Model) -> int:
    """``mask_index``: the number of real tokens, as if they all came first."""

    def masks(layers: Layers, build: Builder, node: ir.Node) -> dict[int, ir.Value]:
        counted = build.op("ReduceSum", layers.inputs["attention_mask"], build.const([1]), keepdims=0)
        return {4: build.cast(counted, ir.DataType.INT32)}

    return multi_head(model, masks)


def filled_with(fill: float) -> Callable[[ir.Model], int]:
    """An additive mask; with -inf a row that sees no key is NaN."""
    return lambda model: multi_head(model, lambda layers, build, node: {5: bias(build, node.inputs[3], fill)})


def one_row_masks(model: ir.Model) -> int:
    """Masks of shape (batch, 1, 1, keys), which the ONNX operator allows."""
    layers = Layers(model)
    for node in layers.nodes:
        build = Builder(model, node, f"planted/{node.outputs[0].name}")
        seen = build.cast(layers.inputs["attention_mask"], ir.DataType.BOOL)
        node.replace_input_with(3, build.unsqueeze(seen, [1, 2]))
    return len(layers.nodes)


def rank_three_gemms(model: ir.Model) -> int:
    """GPT-2's projections without the reshapes to two axes."""
    nodes = [node for node in model.graph if node.op_type == "Gemm" and made_by(node.inputs[0], "Reshape") is not None]
    for node in nodes:
        node.replace_input_with(0, made_by(node.inputs[0], "Reshape").inputs[0])  # type: ignore[union-attr]
    return len(nodes)


def grouped_query(*, rotary: bool = False, fill: float = LOWEST) -> Callable[[ir.Model], int]:
    """GroupQueryAttention with a bias made of the mask; its own rotary takes a row's first position alone.

    Args:
        rotary: fold the rotary embedding in, with tables for 512 positions of base 10000; 16 numbers a head.
        fill: of what is hidden.
    """

    def apply(model: ir.Model) -> int:
        layers = Layers(model)

        def make(build: Builder, node: ir.Node) -> ir.Node:
            query, key, value, mask, past_k, past_v = node.inputs
            turned = [made_by(query, "RotaryEmbedding"), made_by(key, "RotaryEmbedding")]
            if rotary:
                query, key = (step.inputs[0] for step in turned)  # type: ignore[union-attr]
            told = layers.inputs["attention_mask"]
            total = build.cast(build.op("Shape", told, start=1, end=2), ir.DataType.INT32)
            last = build.op("Sub", total, build.const([1], np.int32))
            ends = build.op("Expand", last, build.op("Shape", told, start=0, end=1))
            tables: list[ir.Value | None] = [None, None, None]
            if rotary:
                angles = np.arange(512)[:, None] * 10000.0 ** (-np.arange(8) / 8)
                tables = [build.const(f(angles), np.float32) for f in (np.cos, np.sin)] + [
                    layers.inputs["position_ids"]
                ]
            three = [flat(build, value) for value in (query, key, value)]
            attributes = {"num_heads": 4, "kv_num_heads": 2, "do_rotary": int(rotary)}
            attributes["scale"] = attribute(node, "scale", None)
            values = [*three, past_k, past_v, ends, total, *tables, bias(build, mask, fill)]
            return ir.node("GroupQueryAttention", values, attributes, domain=MICROSOFT, num_outputs=3)

        for node in layers.nodes:
            layers.replace(node, make)
        return len(layers.nodes)

    return apply
