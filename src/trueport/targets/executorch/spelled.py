"""Operators for which ExecuTorch 1.4.1 has no kernel, or one that gives other numbers, in two or three that it has."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from trueport.targets.executorch import integers
from trueport.targets.executorch.formulas import Call, replace

aten = torch.ops.aten


def spell(graph: torch.fx.Graph) -> None:
    """Write them in place."""
    for node in list(graph.nodes):
        if node.target in (aten.constant_pad_nd.default, aten.pad.default):
            _cut(graph, node)
        form = FORMS.get(node.target) if node.op == "call_function" else None
        if form is not None and node.users:
            given = _given(node)
            replace(graph, node, lambda call, *_, form=form, given=given: form(call, **given))


def _given(node: torch.fx.Node) -> dict[str, Any]:
    """Arguments by name, those left out with their defaults."""
    target: Any = node.target
    wanted = target._schema.arguments
    given = {argument.name: value for argument, value in zip(wanted, node.args, strict=False)}
    return {a.name: given.get(a.name, node.kwargs.get(a.name, a.default_value)) for a in wanted}


def _value(node: Any) -> torch.Tensor:
    tensor: torch.Tensor = node.meta["val"]
    return tensor


def _length(call: Call, x: Any, dim: int) -> Any:
    size: Any = _value(x).shape[dim]
    return size if isinstance(size, int) else call(aten.sym_size.int, x, dim % _value(x).dim())


def _shifted(target: Any) -> Callable[..., Any]:
    def form(call: Call, *, self: Any, other: Any) -> Any:
        if not isinstance(other, torch.fx.Node):
            other = call(aten.full_like.default, self, other)
        return call(target, self, other)

    return form


def _sorted(call: Call, *, self: Any, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Any:
    """The largest of all; where equals keep their order, by how many come before each."""
    dim = dim % max(_value(self).dim(), 1)
    if not stable:
        return call(aten.topk.default, self, _length(call, self, dim), dim, descending, True)
    places = call(aten.arange.default, _length(call, self, dim), dtype=torch.int64)
    x = call(aten.transpose.int, self, dim, -1)
    here, there = call(aten.unsqueeze.default, x, -1), call(aten.unsqueeze.default, x, -2)
    column = call(aten.unsqueeze.default, places, -1)
    ahead = call((aten.gt if descending else aten.lt).Tensor, there, here)
    tied = call(aten.logical_and.default, call(aten.eq.Tensor, there, here), call(aten.lt.Tensor, places, column))
    before = call(aten.logical_or.default, ahead, tied)
    ranks = call(aten.sum.dim_IntList, before, [-1])
    # (..., rank, place): each rank is held by one place.
    held = call(aten.eq.Tensor, call(aten.unsqueeze.default, ranks, -2), column)
    order = call(aten.argmax.default, call(aten._to_copy.default, held, dtype=torch.int32), -1)
    order = call(aten.transpose.int, order, dim, -1)
    return call(aten.gather.default, self, dim, order), order


def _argsorted(call: Call, *, self: Any, dim: int = -1, descending: bool = False, stable: bool | None = None) -> Any:
    found = _sorted(call, self=self, dim=dim, descending=descending, stable=stable)
    return found[1] if isinstance(found, tuple) else call(operator.getitem, found, 1)


def _counted(call: Call, x: Any, edges: Any, right: bool, int32: bool) -> Any:
    """How many of the edges (..., edges) lie below each number (..., numbers)."""
    beyond = call(
        (aten.le if right else aten.lt).Tensor,
        call(aten.unsqueeze.default, edges, -2) if _value(edges).dim() > 1 else edges,
        call(aten.unsqueeze.default, x, -1),
    )
    found = call(aten.sum.dim_IntList, beyond, [-1])
    return call(aten._to_copy.default, found, dtype=torch.int32) if int32 else found


def _bucketed(call: Call, *, self: Any, boundaries: Any, out_int32: bool, right: bool) -> Any:
    return _counted(call, self, boundaries, right, out_int32)


def _searched(
    call: Call, *, sorted_sequence: Any, self: Any, out_int32: bool, right: bool, side: Any, sorter: Any
) -> Any:
    if sorter is not None:
        sorted_sequence = call(aten.gather.default, sorted_sequence, -1, sorter)
    return _counted(call, self, sorted_sequence, right or side == "right", out_int32)


def _binned(call: Call, *, self: Any, bins: int, min: Any, max: Any) -> Any:
    """How many numbers lie in each of as many bins between two numbers, as wide as each other, the last with its end."""
    if min == max:  # the data's own ends
        return None
    x = call(aten.flatten.using_ints, self, 0, -1)
    within = call(aten.logical_and.default, call(aten.ge.Scalar, x, min), call(aten.le.Scalar, x, max))
    place = call(aten.mul.Tensor, call(aten.sub.Tensor, x, min), bins)
    place = call(aten.floor.default, call(aten.div.Tensor, place, max - min))
    place = call(aten.minimum.default, place, call(aten.full_like.default, place, bins - 1))
    place = call(aten.where.self, within, place, call(aten.full_like.default, place, -1))
    numbers = call(aten.arange.default, bins, dtype=_value(self).dtype)
    same = call(aten.eq.Tensor, call(aten.unsqueeze.default, place, 1), call(aten.unsqueeze.default, numbers, 0))
    return call(aten._to_copy.default, call(aten.sum.dim_IntList, same, [0]), dtype=_value(self).dtype)


def _is_negative(call: Call, *, self: Any) -> Any:
    """A zero's sign shows in its reciprocal."""
    below = call(aten.lt.Scalar, self, 0)
    if not _value(self).dtype.is_floating_point:
        return below
    zero = call(aten.eq.Scalar, self, 0)
    return call(aten.logical_or.default, below, call(aten.logical_and.default, zero, _reciprocal_below(call, self)))


def _reciprocal_below(call: Call, x: Any) -> Any:
    return call(aten.lt.Scalar, call(aten.reciprocal.default, x), 0)


def _with_sign(call: Call, *, self: Any, other: Any) -> Any:
    size = call(aten.abs.default, self)
    negative = _is_negative(call, self=other) if isinstance(other, torch.fx.Node) else None
    if negative is None:
        return call(aten.neg.default, size) if math.copysign(1, other) < 0 else size
    return call(aten.where.self, negative, call(aten.neg.default, size), size)


def _known_end(target: Any) -> Callable[..., Any]:
    def form(call: Call, *, self: Any, other: Any) -> Any:
        """The other where one is NaN."""
        end = call(target, self, other)
        end = call(aten.where.self, call(aten.isnan.default, self), other, end)
        return call(aten.where.self, call(aten.isnan.default, other), self, end)

    return form


def _rounded(call: Call, *, self: Any, decimals: int) -> Any:
    """As torch does: of negative decimals the quotient, of others the product."""
    if not decimals:
        return call(aten.round.default, self)
    scale = float(10 ** abs(decimals))
    there, back = (aten.mul.Tensor, aten.div.Tensor) if decimals > 0 else (aten.div.Tensor, aten.mul.Tensor)
    return call(back, call(aten.round.default, call(there, self, scale)), scale)


def _empty_like(call: Call, *, self: Any, dtype: Any = None, **_: Any) -> Any:
    """Its own form is torch's alone."""
    return call(aten.full_like.default, self, 0, dtype=dtype or _value(self).dtype)


def _empty(call: Call, *, size: Any, dtype: Any = None, self: Any = None, **_: Any) -> Any:
    """ExecuTorch's own form takes whatever length the trace has."""
    dtype = dtype or (torch.get_default_dtype() if self is None else _value(self).dtype)
    return call(aten.full.default, list(size), 0, dtype=dtype)


def _power_of_two(call: Call, *, self: Any) -> Any:
    return call(aten.pow.Scalar, 2.0, self)


def _levelled(target: Any) -> Callable[..., Any]:
    def form(call: Call, *, self: Any, other: Any, **options: Any) -> Any:
        """With an operand of fewer axes among as many as the other has, where it is longer than that along one.

        In a batch of one row the kernels take the result to have its axes, and refuse.
        """
        few, many = sorted((self, other), key=_rank)
        missing = _rank(many) - _rank(few)
        if _rank(few) < 1 or not missing:
            return None
        sizes = zip(_value(few).shape, _value(many).shape[missing:], strict=True)
        if not any(isinstance(size, int) and size == 1 and str(own) != "1" for own, size in sizes):
            return None
        level = few
        for _ in range(missing):
            level = call(aten.unsqueeze.default, level, 0)
        return call(target, *(level if given is few else given for given in (self, other)), **options)

    return form


def _rank(given: Any) -> int:
    """Axes; 0 of numbers, symbolic ones too."""
    value = given.meta["val"] if isinstance(given, torch.fx.Node) else None
    return value.dim() if isinstance(value, torch.Tensor) else 0


def _cut(graph: torch.fx.Graph, node: torch.fx.Node) -> None:
    """Cut off before a padding what it has negative widths for, which the kernel refuses."""
    widths: Any = node.args[1]
    padded: Any = node.args[0]
    mode = node.args[2] if node.target is aten.pad.default and len(node.args) > 2 else "constant"
    if mode != "constant" or not any(isinstance(width, int) and width < 0 for width in widths):
        return
    for place in range(0, len(widths), 2):
        axis = _value(padded).dim() - 1 - place // 2
        start, end = (-min(width, 0) if isinstance(width, int) else 0 for width in widths[place : place + 2])
        if start or end:
            span = (axis, start, -end if end else torch.iinfo(torch.int64).max)
            with graph.inserting_before(node), node.meta["val"].fake_mode:
                cut = graph.call_function(aten.slice.Tensor, (padded, *span))
                cut.meta.update({**node.meta, "val": aten.slice.Tensor(_value(padded), *span)})
            padded = cut
    # Its own shape stays: asked for again, a padding makes dynamic sizes constants.
    node.args = (padded, [max(width, 0) if isinstance(width, int) else width for width in widths], *node.args[2:])


FORMS: dict[Any, Callable[..., Any]] = {
    **integers.FORMS,
    **{getattr(aten.__lshift__, name): _shifted(aten.bitwise_left_shift.Tensor) for name in ("Scalar", "Tensor")},
    **{getattr(aten.__rshift__, name): _shifted(aten.bitwise_right_shift.Tensor) for name in ("Scalar", "Tensor")},
    aten.sort.default: _sorted,
    aten.sort.stable: _sorted,
    aten.argsort.default: _argsorted,
    aten.argsort.stable: _argsorted,
    aten.bucketize.Tensor: _bucketed,
    aten.searchsorted.Tensor: _searched,
    aten.histc.default: _binned,
    aten.signbit.default: _is_negative,
    aten.copysign.Tensor: _with_sign,
    aten.copysign.Scalar: _with_sign,
    aten.fmax.default: _known_end(aten.maximum.default),
    aten.fmin.default: _known_end(aten.minimum.default),
    aten.round.decimals: _rounded,
    aten.empty_like.default: _empty_like,
    aten.empty.memory_format: _empty,
    aten.new_empty.default: _empty,
    aten.exp2.default: _power_of_two,
    **{getattr(aten, name).Tensor: _levelled(getattr(aten, name).Tensor) for name in ("add", "sub", "mul", "div")},
}
"""By operator: what spells it, of its arguments by name; a form gives None where nothing is wrong."""
