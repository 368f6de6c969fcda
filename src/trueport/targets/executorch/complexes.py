"""Complex numbers as pairs of real ones along a last axis: ExecuTorch 1.4.1 has no kernels that make or read them."""

from __future__ import annotations

from collections.abc import Callable, Set
from typing import Any

import torch

from trueport.targets.executorch.formulas import Call, replace

aten = torch.ops.aten
Pairs = Set[torch.fx.Node]
"""Nodes that stand for complex numbers."""


def spell_complexes(graph: torch.fx.Graph) -> None:
    """Write them in place, where all that is done to them has a form here; else all stays."""
    touched = [node for node in graph.nodes if any(map(_is_complex, (node, *node.all_input_nodes)))]
    if not all(map(_has_form, touched)):
        return
    pairs: set[torch.fx.Node] = set()
    for node in touched:
        made: list[torch.fx.Node] = []

        def formula(
            call: Call, *given: Any, form: Callable[..., Any] = FORMS[node.target], made: list[torch.fx.Node] = made
        ) -> torch.fx.Node:
            made.append(form(call, pairs, *given))
            return made[0]

        gives = _is_complex(node)
        replace(graph, node, formula)
        pairs.update(made if gives else ())


def _has_form(node: torch.fx.Node) -> bool:
    """Whether it can be spelled; a conversion only to what it is already."""
    converts = getattr(node.target, "overloadpacket", None) is aten.to
    return node.target in FORMS and not (converts and not all(map(_is_complex, (node, *node.all_input_nodes))))


def _is_complex(node: torch.fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, torch.Tensor) and value.is_complex()


def _polar(call: Call, pairs: Pairs, size: Any, angle: Any) -> Any:
    parts = [call(aten.mul.Tensor, size, call(turn, angle)) for turn in (aten.cos.default, aten.sin.default)]
    return call(aten.stack.default, parts, -1)


def _seen(call: Call, pairs: Pairs, x: Any, *_: Any) -> Any:
    """A node of its own, which others may read as what it is."""
    return call(aten.clone.default, x)


def _product(call: Call, pairs: Pairs, x: Any, y: Any) -> Any:
    if not isinstance(y, torch.fx.Node):
        return call(aten.mul.Tensor, x, y)
    if not {x, y} <= pairs:
        x, y = (one if one in pairs else call(aten.unsqueeze.default, one, -1) for one in (x, y))
        return call(aten.mul.Tensor, x, y)
    (a, b), (c, d) = ([call(aten.select.int, one, -1, part) for part in range(2)] for one in (x, y))
    real = call(aten.sub.Tensor, call(aten.mul.Tensor, a, c), call(aten.mul.Tensor, b, d))
    other = call(aten.add.Tensor, call(aten.mul.Tensor, a, d), call(aten.mul.Tensor, b, c))
    return call(aten.stack.default, [real, other], -1)


def _along(target: Any) -> Callable[..., Any]:
    def form(call: Call, pairs: Pairs, x: Any, axis: int = 0, *rest: Any) -> Any:
        return call(target, x, axis if axis >= 0 else axis - 1, *rest)

    return form


FORMS: dict[Any, Callable[..., Any]] = {
    aten.polar.default: _polar,
    aten.view_as_complex.default: _seen,
    aten.view_as_real.default: _seen,
    aten.mul.Tensor: _product,
    **{target: _along(target) for target in (aten.unsqueeze.default, aten.slice.Tensor)},
    **{getattr(aten.to, name): _seen for name in ("dtype_layout", "dtype", "device")},
}
"""By operator: what spells it, with the nodes that stand for complex numbers."""
