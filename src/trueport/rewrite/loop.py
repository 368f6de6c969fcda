"""``while`` and ``for``: carried variables found by running the body, then one while_loop or scan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from trueport.errors import RewriteError
from trueport.rewrite.branch import guarded, looping, predicate, refuse_aliases, write_back
from trueport.rewrite.effects import unchanged
from trueport.rewrite.region import Probe, inside, is_traced, probe, united
from trueport.rewrite.sources import Items
from trueport.rewrite.stacked import Growing, Stacked
from trueport.rewrite.values import UNDEFINED, Number, Plan, Slot, Symbolic, as_tensor, number_dtype, same

ROUNDS = 8
"""Runs of a body until it is known what it carries: each makes one more variable a tensor."""

Body = Callable[..., Sequence[Any]]


@dataclass(frozen=True)
class Carried:
    """What a loop carries: the plan of its variables, their first values, and what a run of the body told."""

    plan: Plan
    first: tuple[torch.Tensor, ...]
    growing: tuple[int, ...]
    seen: Probe

    def entries(self, results: Sequence[Any]) -> list[torch.Tensor]:
        """What one iteration appended to the growing lists."""
        return [entry for index in self.growing for entry in results[index].entries]


def carried(body: Body, names: Sequence[str], values: Sequence[Any], where: str, item: Sequence[Any] = ()) -> Carried:
    """Run ``body(*item, *values)`` until each variable is a constant of the loop, a tensor of fixed shape, or a list.

    Raises:
        RewriteError: a variable changes its shape, its dtype or its Python value from one iteration to the next.
    """
    values = list(values)
    for _ in range(ROUNDS):
        growing = [Growing(value) if type(value) is list else value for value in values]
        copies = [
            value if isinstance(value, Growing) else pytree.tree_map(lambda leaf: leaf, value) for value in growing
        ]
        with unchanged((body,), where, "this loop"):
            seen = probe(lambda *given: list(body(*given)), (*item, *copies))
        specs, changed = list[pytree.TreeSpec](), False
        slots, lists = list[tuple[Slot, ...]](), list[int]()
        for index, (name, before, after) in enumerate(zip(names, values, seen.result, strict=True)):
            if isinstance(after, Growing):
                lists.append(index)
                specs.append(pytree.tree_structure(None))
                slots.append((Slot(None),))
                continue
            start, spec = _start(name, before, after, where)
            own = tuple(_slot(name, a, b, where) for a, b in zip(start, pytree.tree_leaves(after), strict=True))
            fresh = [_first(a, slot) for a, slot in zip(start, own, strict=True)]
            changed |= any(new is not old for new, old in zip(fresh, start, strict=True))
            values[index] = pytree.tree_unflatten(fresh, spec)
            specs.append(spec)
            slots.append(own)
        if not changed:
            plan = Plan(tuple(names), tuple(specs), tuple(slots))
            kept = [None if index in lists else value for index, value in enumerate(values)]
            return Carried(plan, tuple(plan.outputs(kept)), tuple(lists), seen)
    raise RewriteError(f"{where}: the variables {', '.join(names)} do not settle to fixed shapes and dtypes")


def _start(name: str, before: Any, after: Any, where: str) -> tuple[list[Any], pytree.TreeSpec]:
    leaves, spec = pytree.tree_flatten(before)
    ended = pytree.tree_structure(after)
    if before is UNDEFINED:
        return [UNDEFINED] * ended.num_leaves, ended
    if spec != ended:
        raise RewriteError(
            f"{where}: the variable {name} changes its structure from one iteration to the next",
            "Carry tensors of fixed shape, or append to a list that is stacked after the loop.",
        )
    return leaves, spec


def _slot(name: str, before: Any, after: Any, where: str) -> Slot:
    numbers = (*Number, *Symbolic)
    if same(before, after):
        return Slot(before)
    if before is UNDEFINED:
        return Slot(after, after) if isinstance(after, torch.Tensor) else _number_slot(name, after, where)
    if isinstance(before, torch.Tensor) and isinstance(after, torch.Tensor):
        _refuse_change(name, before, after, where)
        return Slot(before, before)
    if isinstance(before, torch.Tensor) and isinstance(after, numbers):
        return Slot(before, before)
    if isinstance(before, numbers) and isinstance(after, torch.Tensor):
        return Slot(before, after)
    if isinstance(before, numbers) and isinstance(after, numbers):
        dtype = torch.promote_types(number_dtype(before), number_dtype(after))
        return Slot(before, torch.empty((), dtype=dtype))
    raise RewriteError(
        f"{where}: the variable {name} changes from one iteration to the next and is no tensor or number "
        f"({type(before).__name__}, then {type(after).__name__})",
        "Carry a tensor instead.",
    )


def _number_slot(name: str, after: Any, where: str) -> Slot:
    if isinstance(after, Number):
        return Slot(after, torch.empty((), dtype=number_dtype(after)))
    return Slot(after)


def _first(value: Any, slot: Slot) -> Any:
    """What a carried leaf holds before the first iteration; the value itself where it already is such a tensor."""
    if slot.like is None or (isinstance(value, torch.Tensor) and value.shape == slot.like.shape):
        return value if slot.like is None or isinstance(value, torch.Tensor) else as_tensor(value, slot.like)
    return as_tensor(value, slot.like)


def _refuse_change(name: str, before: torch.Tensor, after: torch.Tensor, where: str) -> None:
    if before.dtype != after.dtype:
        raise RewriteError(
            f"{where}: the variable {name} is {before.dtype} before an iteration and {after.dtype} after it",
            f"Start with `.to({after.dtype})`.",
        )
    if [str(length) for length in before.shape] != [str(length) for length in after.shape]:
        raise RewriteError(
            f"{where}: the variable {name} has the shape {tuple(before.shape)} before an iteration and "
            f"{tuple(after.shape)} after it",
            "Append to a list and concatenate after the loop, or write into a tensor of the final shape.",
        )


def traced_while(
    test: Callable[..., Any], body: Body, names: Sequence[str], values: Sequence[Any], where: str
) -> list[Any]:
    """The values of ``names`` after ``while test: body``."""
    from torch._higher_order_ops.while_loop import while_loop_op

    state = carried(body, names, values, where)
    if state.growing:
        grown = ", ".join(names[index] for index in state.growing)
        raise RewriteError(
            f"{where}: the list {grown} grows in a `while` whose number of iterations depends on a tensor",
            "Use `for` over a tensor or over `range`, or write into a tensor made before the loop.",
        )
    asked = probe(test, values)
    captured = united(state.seen.captured, asked.captured)
    mutated = state.seen.mutated
    read = tuple(tensor for tensor in captured if id(tensor) not in {id(each) for each in mutated})
    refuse_aliases(captured, mutated, where)
    size = len(state.first)

    def split(tensors: Sequence[torch.Tensor]) -> tuple[list[Any], tuple[torch.Tensor, ...]]:
        given = state.plan.rebuild([tensor.clone() for tensor in tensors[:size]])
        written, others = tensors[size : size + len(mutated)], tensors[size + len(mutated) :]
        return given, (*written, *others)

    def ask(*tensors: torch.Tensor) -> Any:
        given, operands = split(tensors)
        with inside((*mutated, *read), operands, ()):
            return predicate(test(*given), where)

    def step(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        given, operands = split(tensors)
        token = looping.set(True)
        try:
            with inside((*mutated, *read), operands, mutated) as outer:
                result = body(*given)
                written = [outer(tensor).clone() for tensor in mutated]
                return (*state.plan.outputs(result, outer), *written)
        finally:
            looping.reset(token)

    first: Any = (*state.first, *(tensor.clone() for tensor in mutated))
    outputs = guarded(lambda: while_loop_op(ask, step, first, read), where)
    return state.plan.rebuild(write_back(mutated, outputs))


def traced_for(body: Body, source: Items, names: Sequence[str], values: Sequence[Any], where: str) -> list[Any]:
    """The values of ``names`` after ``for item in source: body(row of each column, *values)``."""
    if is_traced(source.length()):
        return _counted(body, source, names, values, where)
    return _scanned(body, source.columns(), names, values, where)


def _counted(body: Body, source: Items, names: Sequence[str], values: Sequence[Any], where: str) -> list[Any]:
    """A loop whose number of iterations is a tensor's value: a while_loop that counts; lists grow in tensors."""
    count = source.length()
    # A size that is read in the loop must come in as a tensor.
    last = torch.full((), count, dtype=torch.int64)
    state = carried(
        lambda *given: body(source.at(given[0]), *given[1:]), names, values, where, [torch.zeros((), dtype=torch.int64)]
    )
    rooms = [entry.new_empty(()) for entry in state.entries(state.seen.result)]
    shapes = [tuple(entry.shape) for entry in state.entries(state.seen.result)]
    rooms = [torch.zeros((count, *shape), dtype=room.dtype) for room, shape in zip(rooms, shapes, strict=True)]
    others = [index for index in range(len(names)) if index not in state.growing]
    size = 1 + len(others)

    def step(*given: Any) -> list[Any]:
        index, full = given[0], list[Any](values)
        for place, value in zip(others, given[1:size], strict=True):
            full[place] = value
        for place in state.growing:
            full[place] = Growing(values[place])
        result = body(source.at(index), *full)
        entries = state.entries(result)
        grown = [
            room.index_copy(0, index.reshape(1), entry[None]) for room, entry in zip(given[size:], entries, strict=True)
        ]
        return [index + 1, *(result[place] for place in others), *grown]

    start = [torch.zeros((), dtype=torch.int64), *(values[place] for place in others), *rooms]
    labels = ["the counter", *(names[place] for place in others), *("the list" for _ in rooms)]
    after = traced_while(lambda *given: given[0] < last, step, labels, start, where)
    results = list[Any](values)
    for place, value in zip(others, after[1:size], strict=True):
        results[place] = value
    return _with_lists(results, after[size:], state, values, where)


def _with_lists(
    results: list[Any], columns: Sequence[torch.Tensor], state: Carried, values: Sequence[Any], where: str
) -> list[Any]:
    """``results`` with the grown lists in their places."""
    rest = list(columns)
    for place in state.growing:
        width = len(state.seen.result[place].entries)
        results[place], rest = Stacked(values[place], rest[:width], where), rest[width:]
    return results


def _scanned(
    body: Body, columns: Sequence[torch.Tensor], names: Sequence[str], values: Sequence[Any], where: str
) -> list[Any]:
    """A loop over tensors, columns of shape (iterations, ...): a scan."""
    from torch._higher_order_ops.scan import scan_op

    item = [column.new_empty(column.shape[1:]) for column in columns]
    width = len(columns)
    state = carried(lambda *given: body(given[:width], *given[width:]), names, values, where, item)
    captured, mutated = state.seen.captured, state.seen.mutated
    read = tuple(tensor for tensor in captured if id(tensor) not in {id(each) for each in mutated})
    refuse_aliases(captured, mutated, where)
    # A scan carries something, be it nothing that anyone reads.
    first = [*state.first, *(tensor.clone() for tensor in mutated)] or [torch.zeros(())]
    size = len(state.first)

    def step(*tensors: torch.Tensor) -> list[torch.Tensor]:
        carry, current, others = tensors[: len(first)], tensors[len(first) :][:width], tensors[len(first) + width :]
        given = state.plan.rebuild([tensor.clone() for tensor in carry[:size]])
        for place in state.growing:
            given[place] = Growing(values[place])
        written = carry[size : size + len(mutated)]
        with inside((*mutated, *read), (*written, *others), mutated) as outer:
            result = list(body(current, *given))
            entries = [outer(entry).clone(memory_format=torch.contiguous_format) for entry in state.entries(result)]
            for place in state.growing:
                result[place] = None
            after = [*state.plan.outputs(result, outer), *(outer(tensor).clone() for tensor in mutated)]
            return [*(after or [carry[0].clone()]), *entries]

    outputs = guarded(lambda: scan_op(step, first, list(columns), read), where)
    kept, stacked = outputs[: len(first)], outputs[len(first) :]
    results = state.plan.rebuild(write_back(mutated, kept if state.first or mutated else []))
    return _with_lists(results, stacked, state, values, where)
