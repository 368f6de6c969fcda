"""Complex numbers as pairs of real ones: a rotary embedding may multiply them, and no target has them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import Node

_aten = torch.ops.aten
CASTS = {
    _aten.to.dtype, _aten.to.device, _aten.to.dtype_layout, _aten.to.other, _aten.detach.default, _aten.alias.default,
}  # fmt: skip
"""What leaves a complex number as it is, where its dtype stays."""
COPIES = {_aten.clone.default, _aten.contiguous.default}
"""What gives the same numbers one behind the other."""
RESHAPES = {_aten.view.default, _aten.reshape.default, _aten.expand.default}
"""What takes the sizes of its result."""
AXES = {_aten.slice.Tensor: 0, _aten.select.int: 0, _aten.unsqueeze.default: 1}
"""What takes one axis, and how many more axes than its operand has it may count."""
CHECK = _aten._assert_tensor_metadata.default


def split_complex(program: torch.export.ExportedProgram) -> None:
    """Put a real tensor with one more axis, the last, of real and imaginary part, in the place of each complex one.

    Products become those of the parts. A program that does anything else with a complex number, or is given or gives one, is
    left as it is, for the target to take or to refuse.
    """
    for graph in program.graph_module.modules():
        if isinstance(graph, torch.fx.GraphModule):
            nodes = [node for node in graph.graph.nodes if _is_complex(node)]
            if nodes and all(_is_known(node) for node in nodes):
                _Pairs(graph.graph).run()
                graph.recompile()


def _is_complex(node: Any) -> bool:
    value = node.meta.get("val") if isinstance(node, Node) else None
    return isinstance(value, torch.Tensor) and value.is_complex()


def _is_known(node: Node) -> bool:
    """Whether a node, and whoever reads it, is among those that have a form."""
    readers = [user for user in node.users if not _is_complex(user)]
    return _makes(node) is not None and all(user.target in (_aten.view_as_real.default, CHECK) for user in readers)


def _makes(node: Node) -> Callable[..., Node] | None:
    """What makes the pair of a node."""
    target: Any = node.target
    if target in CASTS:
        same = isinstance(node.args[0], Node) and node.args[0].meta["val"].dtype == node.meta["val"].dtype
        return _Pairs.same if same else None
    if target in COPIES:
        return _Pairs.copied
    if target in RESHAPES:
        return _Pairs.reshaped
    if target in AXES:
        return _Pairs.along
    if node.kwargs or any(isinstance(arg, complex) for arg in node.args):
        return None
    if target is _aten.complex.default and node.args[0].meta["val"].shape != node.args[1].meta["val"].shape:  # type: ignore[union-attr]
        return None
    return FORMS.get(target)


class _Pairs:
    """One graph whose complex nodes are replaced, in their order."""

    def __init__(self, graph: torch.fx.Graph) -> None:
        self.graph = graph
        self.pairs: dict[Node, Node] = {}
        self.now: Node

    def run(self) -> None:
        """Replace all of them; what only they read goes too."""
        for node in list(self.graph.nodes):
            if _is_complex(node):
                self.now = node
                with self.graph.inserting_before(node):
                    makes = _makes(node)
                    assert makes is not None
                    self.pairs[node] = makes(self, node)
            elif node.target is _aten.view_as_real.default:
                node.replace_all_uses_with(self.pairs[node.args[0]])
                self.graph.erase_node(node)
            elif node.target is CHECK and node.args[0] in self.pairs:
                self.graph.erase_node(node)
        for node in reversed(self.pairs):
            self.graph.erase_node(node)

    def put(self, target: Any, *args: Any) -> Node:
        """A node in the place of the complex one, of its module."""
        made = self.graph.call_function(target, args)
        made.meta = {**self.now.meta}
        given = torch.fx.map_arg(args, lambda node: node.meta["val"])
        with self.now.meta["val"].fake_mode:
            made.meta["val"] = target(*given)
        return made

    def same(self, node: Node) -> Node:
        """What gives the number that it is given."""
        return self.pairs[node.args[0]]  # type: ignore[index]

    def given(self, node: Node) -> Node:
        """``view_as_complex``."""
        return node.args[0]  # type: ignore[return-value]

    def copied(self, node: Node) -> Node:
        """Both parts one behind the other."""
        return self.put(_aten.contiguous.default, self.pairs[node.args[0]])  # type: ignore[index]

    def reshaped(self, node: Node) -> Node:
        """Both parts in another shape."""
        sizes: Any = node.args[1]
        last = -1 if node.target is _aten.expand.default else 2
        return self.put(node.target, self.pairs[node.args[0]], [*sizes, last])  # type: ignore[index]

    def along(self, node: Node) -> Node:
        """Both parts, along an axis that is counted from the front."""
        target: Any = node.target
        axis, *rest = [node.args[1] if len(node.args) > 1 else 0, *node.args[2:]]
        rank = node.args[0].meta["val"].ndim + AXES[target]  # type: ignore[union-attr]
        return self.put(target, self.pairs[node.args[0]], axis % rank, *rest)  # type: ignore[index,operator]

    def joined(self, node: Node) -> Node:
        """``complex``: the two parts."""
        return self.put(_aten.stack.default, list(node.args[:2]), -1)

    def turned(self, node: Node) -> Node:
        """``polar``: a length and an angle."""
        length, angle = node.args[:2]
        parts = [
            self.put(_aten.mul.Tensor, length, self.put(turn, angle)) for turn in (_aten.cos.default, _aten.sin.default)
        ]
        return self.put(_aten.stack.default, parts, -1)

    def product(self, node: Node) -> Node:
        """``mul`` of two complex numbers, or of one and a real one."""
        one, other = node.args[:2]
        if not _is_complex(one):
            one, other = other, one
        pair = self.pairs[one]  # type: ignore[index]
        if not _is_complex(other):
            factor = (
                self.put(_aten.unsqueeze.default, other, -1) if isinstance(other, Node) and _is_tensor(other) else other
            )
            return self.put(_aten.mul.Tensor, pair, factor)
        (a, b), (c, d) = (
            [self.put(_aten.select.int, both, -1, part) for part in (0, 1)]
            for both in (pair, self.pairs[other])  # type: ignore[index]
        )
        products = [self.put(_aten.mul.Tensor, left, right) for left, right in ((a, c), (b, d), (a, d), (b, c))]
        real = self.put(_aten.sub.Tensor, *products[:2])
        return self.put(_aten.stack.default, [real, self.put(_aten.add.Tensor, *products[2:])], -1)


def _is_tensor(node: Node) -> bool:
    return isinstance(node.meta.get("val"), torch.Tensor)


FORMS: dict[Any, Callable[..., Node]] = {
    _aten.view_as_complex.default: _Pairs.given,
    _aten.complex.default: _Pairs.joined,
    _aten.polar.default: _Pairs.turned,
    _aten.mul.Tensor: _Pairs.product,
}
"""By operator, those that take no keywords."""
