"""Attention without the copies around it: key heads that are not repeated, a cache that is not concatenated."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter import pattern

from trueport.graphs.fusions.reading import numbers, parts, scalar


class GroupedHeads(pattern.RewriteRuleClassBase):
    """Attention over key and value heads that were repeated for every query head: the operator groups them itself."""

    def __init__(self) -> None:
        super().__init__(name="grouped-heads", remove_nodes=False)

    def pattern(
        self, op: Any, q: Any, k: Any, v: Any, mask: Any, two: Any, k_wide: Any, k_flat: Any, v_wide: Any, v_flat: Any
    ) -> Any:  # fmt: skip
        """``repeat_kv`` of transformers: a new axis, expanded, and merged with the heads."""
        key = op.Reshape(op.Expand(op.Unsqueeze(k, two), k_wide), k_flat, _allow_other_attributes=True)
        value = op.Reshape(op.Expand(op.Unsqueeze(v, two), v_wide), v_flat, _allow_other_attributes=True)
        return op.Attention(q, key, value, mask, _allow_other_attributes=True, _outputs=["attended"])

    def check(
        self, context: Any, two: ir.Value, k_wide: ir.Value, k_flat: ir.Value, v_wide: ir.Value, v_flat: ir.Value,
        **_: Any,
    ) -> bool:  # fmt: skip
        """The new axis comes after the heads, and nothing but it grows."""
        return numbers(two) == [2] and _repeated(k_wide, k_flat) and _repeated(v_wide, v_flat)

    def rewrite(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, attended: ir.Value, **_: Any
    ) -> Any:
        """The same operator over the heads that there are."""
        node = attended.producer()
        assert node is not None
        return op.Attention(q, k, v, mask, **_attributes(node))


class PastInside(pattern.RewriteRuleClassBase):
    """Attention over a cache concatenated with the new keys and values: the operator takes both and gives them joined.

    Args:
        caches: names of the inputs that grow with every token. One that may get nothing new, as a cache of the encoder's
            projections after the first step, stays outside: ONNX Runtime refuses new keys of length 0.
    """

    def __init__(self, caches: Collection[str]) -> None:
        super().__init__(name="past-inside", remove_nodes=False)
        self.caches = frozenset(caches)

    def pattern(self, op: Any, q: Any, k: Any, v: Any, mask: Any, past_k: Any, past_v: Any) -> Any:
        """The two concatenations are the graph's own outputs besides."""
        key = op.Concat(past_k, k, axis=-2, _outputs=["key"])
        value = op.Concat(past_v, v, axis=-2, _outputs=["value"])
        attended = op.Attention(q, key, value, mask, _allow_other_attributes=True, _outputs=["attended"])
        return attended, key, value

    def check(self, context: Any, past_k: ir.Value, past_v: ir.Value, attended: ir.Value, **_: Any) -> bool:
        """Both caches grow with every token, and the operator has given nothing but its result so far."""
        node = attended.producer()
        return {past_k.name, past_v.name} <= self.caches and node is not None and len(node.outputs) == 1

    def rewrite(
        self, op: Any, q: ir.Value, k: ir.Value, v: ir.Value, mask: ir.Value, past_k: ir.Value, past_v: ir.Value,
        attended: ir.Value, **_: Any,
    ) -> Any:  # fmt: skip
        """Outputs: what was attended, the new cache's keys, its values."""
        node = attended.producer()
        assert node is not None
        return op.Attention(q, k, v, mask, past_k, past_v, _outputs=3, **_attributes(node))


def _attributes(node: ir.Node) -> dict[str, Any]:
    return {name: entry.value for name, entry in node.attributes.items()}


def _repeated(wide: ir.Value, flat: ir.Value) -> bool:
    """Whether shapes (batch, heads, groups, length, size) and (batch, heads · groups, length, size) belong together."""
    first, second = parts(wide), parts(flat)
    if first is None or second is None or len(first) != 5 or len(second) != 4:
        return False
    heads, groups, all_heads = (scalar(value) for value in (first[1], first[2], second[1]))
    same = [first[0] is second[0], first[3] is second[2], scalar(first[4]) == scalar(second[3])]
    return None not in (heads, groups, all_heads) and heads * groups == all_heads and all(same)
