"""``if``: both ways traced, joined by one cond."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

import torch

from trueport.errors import RewriteError
from trueport.rewrite.effects import unchanged
from trueport.rewrite.region import inside, probe, united
from trueport.rewrite.values import UNDEFINED, Plan, isolated, plan

looping: ContextVar[bool] = ContextVar("looping", default=False)
"""Whether the body of a ``while`` is being traced, in which torch.onnx 2.13 cannot place the graphs of a branch."""


def predicate(test: Any, where: str) -> Any:
    """A traced test as cond takes it: a bool tensor of shape (), or a symbolic bool."""
    if not isinstance(test, torch.Tensor):
        return test
    if test.numel() != 1:
        raise RewriteError(
            f"{where}: the test is a tensor of shape {tuple(test.shape)}, whose truth Python does not define",
            "Reduce it with `.any()` or `.all()`.",
        )
    test = test.reshape(())
    return test if test.dtype == torch.bool else test != 0


def traced_cond(
    test: Any,
    then: Callable[..., Sequence[Any]],
    orelse: Callable[..., Sequence[Any]],
    names: Sequence[str],
    values: Sequence[Any],
    where: str,
) -> list[Any]:
    """The values of ``names`` after an ``if``; ``then`` and ``orelse`` take and give back all of them."""
    from torch._higher_order_ops.cond import cond_op

    copies = [[isolated(value) for value in values] for _ in (then, orelse)]
    with unchanged((then, orelse), where):
        probes = [probe(partial(way, *given)) for way, given in zip((then, orelse), copies, strict=True)]
    results = [seen.result for seen in probes]
    kept = _same_objects(names, values, copies, results, where)
    decided = plan(names, probes[0].result, probes[1].result, where)
    captured = united(probes[0].captured, probes[1].captured)
    mutated = united(probes[0].mutated, probes[1].mutated)
    refuse_aliases(captured, mutated, where)

    def graph(way: Callable[..., Sequence[Any]]) -> Callable[..., tuple[torch.Tensor, ...]]:
        def run(*operands: torch.Tensor) -> tuple[torch.Tensor, ...]:
            with inside(captured, operands, mutated) as outer:
                result = way(*(isolated(value) for value in values))
                written = [outer(tensor).clone(memory_format=torch.contiguous_format) for tensor in mutated]
                return (*decided.outputs(result, outer), *written)

        return run

    if not mutated and not any(slot.like is not None for slots in decided.slots for slot in slots):
        return _kept(kept, decided, [])
    if looping.get() and any(seen.partial for seen in probes):
        raise RewriteError(
            f"{where}: a whole number is divided, or a tensor looked up, on a way that a test forbids within a `while`, "
            "where both ways are computed",
            "Make the divisor or the index legal on both ways first, with `torch.where` or `clamp`.",
        )
    if looping.get() and decided.of_one_shape(probes[0].result, probes[1].result):
        return _kept(kept, decided, _selected(test, (then, orelse), values, decided, mutated, where))
    outputs = guarded(lambda: cond_op(predicate(test, where), graph(then), graph(orelse), captured), where)
    outputs = write_back(mutated, outputs)
    return _kept(kept, decided, outputs)


def _selected(
    test: Any,
    ways: Sequence[Callable[..., Sequence[Any]]],
    values: Sequence[Any],
    decided: Plan,
    mutated: Sequence[torch.Tensor],
    where: str,
) -> list[torch.Tensor]:
    """Both ways computed, and one chosen element by element."""
    both = []
    for way in ways:
        with inside(mutated, [tensor.clone() for tensor in mutated], ()) as outer:
            result = way(*(isolated(value) for value in values))
            both.append([*decided.outputs(result, outer), *(outer(tensor) for tensor in mutated)])
    asked = predicate(test, where)
    return write_back(mutated, [_where(asked, one, other) for one, other in zip(*both, strict=True)])


def _where(test: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """``torch.where``, which ONNX Runtime lacks for booleans."""
    return (test & one) | (~test & other) if one.dtype == torch.bool else torch.where(test, one, other)


def _same_objects(
    names: Sequence[str],
    values: Sequence[Any],
    copies: Sequence[Sequence[Any]],
    results: Sequence[Sequence[Any]],
    where: str,
) -> list[Any]:
    """The values before, UNDEFINED in the place of a list or dict that a way replaces by another.

    What has a second name is still the old object under it.

    Raises:
        RewriteError: one way replaces it, and one writes to it.
    """
    kept = list(values)
    for place, (name, value) in enumerate(zip(names, values, strict=True)):
        if not isinstance(value, (list, dict)):
            continue
        replaced = any(result[place] is not given[place] for result, given in zip(results, copies, strict=True))
        if not replaced:
            continue
        kept[place] = UNDEFINED
        if any(not _holds_same(given[place], value) for given in copies):
            raise RewriteError(
                f"{where}: the {type(value).__name__} {name} is written to on one way and another one on the other",
                "Write to it on both ways, or make a new one on both.",
            )
    return kept


def _holds_same(one: Any, other: Any) -> bool:
    """Whether two containers hold the same objects."""
    if isinstance(one, dict):
        return list(one) == list(other) and all(one[key] is other[key] for key in one)
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def _kept(values: Sequence[Any], decided: Plan, outputs: Sequence[torch.Tensor]) -> list[Any]:
    """The rebuilt values; a list or dict of the caller's that was written to stays the same object."""
    results = decided.rebuild(outputs)
    for index, (before, after) in enumerate(zip(values, results, strict=True)):
        if type(before) is type(after) and isinstance(before, (list, dict)):
            before.clear()
            if isinstance(before, list):
                before.extend(after)
            else:
                before.update(after)
            results[index] = before
    return results


def write_back(mutated: Sequence[torch.Tensor], outputs: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """Repeat outside what a graph wrote inside to ``mutated``, whose new values are its last outputs."""
    rest = list(outputs)
    for tensor, value in reversed(list(zip(mutated, rest[len(rest) - len(mutated) :], strict=True))):
        tensor.copy_(value)
    return rest[: len(rest) - len(mutated)]


def refuse_aliases(captured: Sequence[torch.Tensor], mutated: Sequence[torch.Tensor], where: str) -> None:
    """Two operands of one storage, of which one is written to, would drift apart inside the graph."""
    from torch.multiprocessing.reductions import StorageWeakRef

    storages = [StorageWeakRef(tensor.untyped_storage()) for tensor in captured]
    written = [StorageWeakRef(tensor.untyped_storage()) for tensor in mutated]
    if any(storages.count(storage) > 1 for storage in written):
        raise RewriteError(
            f"{where}: a tensor is written in place and read through a view of it in the same branch or loop",
            "Write to a copy, `y = x.clone()`, and go on with the copy.",
        )


def guarded(call: Callable[[], Any], where: str) -> list[torch.Tensor]:
    """``call()``, with torch's refusals as ours."""
    try:
        return list(call())
    except RewriteError:
        raise
    except Exception as error:
        cause: BaseException = error
        while isinstance(cause.__cause__, BaseException):
            cause = cause.__cause__
        if isinstance(cause, RewriteError):
            raise cause from None
        summary = next((line.strip() for line in str(cause).splitlines() if line.strip()), "")
        raise RewriteError(
            f"{where}: torch cannot put this into one graph: {type(cause).__name__}: {summary}"
        ) from error
