"""``range``: in float16 and bfloat16, which layer's numbers would not fit, seen before they are rounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from trueport.proof.asked import Asked, NotApplicableError
from trueport.proof.clauses.finite import extremes
from trueport.proof.inputs import Batch, left
from trueport.proof.reference import Reference
from trueport.proof.result import Case
from trueport.weights.streamed import streamed

HALF = (torch.float16, torch.bfloat16)
SHOWN = 8
"""Tokens of the input that overflows that are shown; proof.json has all."""
FILLS = torch.finfo(torch.float32).min / 2
"""What lies below hides a key from a softmax: a fill value in the dtype's own limits, no activation."""
TAKEN = 8192
"""Rows of a table of embeddings that are looked at at once."""
SCORES = "scores"
"""What queries and keys give inside PyTorch's attention, which keeps it in float32 and ONNX's operator does not."""
Place = tuple[str, str, int]
"""A module's path, empty for the whole model; whether it is what the module ``takes`` or ``gives`` or what it ``scores``;
and which tensor of these."""
Seen = Callable[[Place, torch.Tensor], None]


@dataclass(frozen=True)
class Reached:
    """The largest magnitude of a row at a place; of a batch where a tensor has no rows, as the tokens of an expert."""

    size: float
    batch: Batch
    row: int | None

    def input(self) -> Batch:
        """What reached it."""
        return self.batch if self.row is None else self.batch.take([self.row])


def ask(asked: Asked) -> list[Case]:
    """Every activation of the original, computed in float32, fits into the dtype of the export.

    Where one does not, the case names the first such place in the order of the computation: what overflows later may
    follow from it. An overflow that the original's own clamp catches, as T5's after its feed-forward layers, is told and
    not held against the artefact, which clamps in the same places, unless another one is not caught.
    """
    if asked.own is None or not isinstance(asked.own.model, torch.nn.Module):
        raise NotApplicableError("needs the original: give --against MODEL")
    dtype = asked.own.dtype
    if dtype not in HALF:
        raise NotApplicableError("it computes in float32")
    limit, name = torch.finfo(dtype).max, str(dtype).removeprefix("torch.")
    lost = [path for path, weight in asked.own.model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if lost:
        return [Case(f"weights in {name}", None, limit, None, f"{lost[0]} is not finite in {name}")]
    batches = _batches(asked)
    narrow = _narrow(asked.own, batches[0], dtype)
    found = {place: reached for place, reached in _reached(asked.own, batches).items() if place in narrow}
    over = [
        (place, one)
        for place, reached in found.items()
        for one in sorted(reached, key=lambda one: one.size, reverse=True)
        if not one.size <= limit
    ]
    if not over:
        size, place = max((one.size, place) for place, reached in found.items() for one in reached)
        return [Case(f"{name} range", size, limit, None, f"largest where {_words(place)}")]
    place, first, held = _first(asked.own, over)
    words, row = f"{_words(place)} {first.size:.4g}", first.input()
    if not held:
        note = f"{words}, past {name}'s {limit:.6g}, which the original itself clamps"
        return [Case(f"{name} range", 0.0, limit, row.to_json(), note)]
    note = (
        f"{words}, the first of {len({place for place, _ in over})} places past {name}'s {limit:.6g}; "
        "give --dtype float32" + (" or bfloat16" if dtype == torch.float16 else "") + f"; {_tokens(row)}"
    )
    return [Case(f"{name} range", first.size, limit, row.to_json(), note)]


def _first(own: Reference, over: Sequence[tuple[Place, Reached]]) -> tuple[Place, Reached, bool]:
    """The first overflow that is held against the export, and True; where the original catches all, the first of these."""
    known: dict[tuple[int, int | None], bool] = {}

    def caught(place: Place, one: Reached) -> bool:
        key = (id(one.batch), one.row)
        if place[1] != SCORES and key not in known:
            known[key] = _is_finite(own, one.input())
        return place[1] != SCORES and known[key]

    lost = [(place, one) for place, one in over if not caught(place, one)]
    if not lost:
        return *over[0], False
    clamped = {place for place, one in over if caught(place, one)}  # on another input: it is not to blame on this one
    return *next(((place, one) for place, one in lost if place not in clamped), lost[0]), True


def _batches(asked: Asked) -> list[Batch]:
    """The extremes that ``finite`` asks, a padded batch of ordinary tokens, and the tokens that lie furthest out."""
    length = asked.inputs.fits(24)
    pads = [0, min(5, length - 1) if asked.masked else 0]
    ordinary = asked.inputs.draw("range", left(length, pads), target=12)
    return [ordinary, *(batch for _, batch in extremes(asked)), *_outlying(asked, length)]


def _outlying(asked: Asked, length: int) -> Iterator[Batch]:
    """A row of the tokens with the largest numbers in their embeddings, those with a meaning first; a drawn one misses them.

    A decoder behind an encoder reads them too.
    """
    assert asked.own is not None
    model, inputs = asked.own.model, asked.inputs
    try:
        table: Any = model.get_input_embeddings().weight  # type: ignore[operator, union-attr]
    except (AttributeError, NotImplementedError, TypeError):  # another model than transformers', or one without tokens
        return
    if inputs.features is not None or inputs.sound or table.ndim != 2 or len(table) < inputs.vocabulary:
        return
    sizes = torch.cat([part.detach().abs().amax(1).float() for part in table[: inputs.vocabulary].split(TAKEN)])
    special = [token for token in sorted(inputs.special) if 0 <= token < inputs.vocabulary]
    ordered = dict.fromkeys([*special, *sizes.argsort(descending=True)[:length].tolist()])
    tokens = np.array(list(ordered), dtype=np.int64)[:length]
    batch = inputs.told("range outlying", [tokens.tolist()], left, length, target=12)
    if batch.target is not None:
        batch = replace(batch, target=np.resize(tokens, batch.target.shape))
    yield batch


def _narrow(own: Reference, batch: Batch, dtype: torch.dtype) -> set[Place]:
    """The places whose tensors have the export's dtype; T5, for one, keeps some layers in float32."""
    found: set[Place] = set()

    def seen(place: Place, tensor: torch.Tensor) -> None:
        if tensor.dtype == dtype:
            found.add(place)

    with _watched(own.model, seen):
        Reference(own.model, own.role, own.names).forward(batch)
    return found


def _reached(own: Reference, batches: Sequence[Batch]) -> dict[Place, list[Reached]]:
    """The largest magnitudes at every place in float32, in the order of the computation."""
    model = streamed(own.model, torch.float32)
    wide = Reference(model, own.role, own.names)
    found: dict[Place, list[Reached]] = {}
    for batch in batches:

        def seen(place: Place, tensor: torch.Tensor, batch: Batch = batch) -> None:
            sizes = torch.where(tensor > FILLS, tensor.abs(), 0.0).nan_to_num(nan=torch.inf, posinf=torch.inf)
            by_row = tensor.ndim > 2 and len(tensor) == batch.size  # of two axes, the first may be an expert's tokens
            rows = (sizes.flatten(1).amax(1) if by_row else sizes.max()[None]).tolist()
            reached = [Reached(size, batch, row if by_row else None) for row, size in enumerate(rows)]
            found.setdefault(place, []).extend(reached)

        with _watched(model, seen):
            wide.forward(batch)
    return found


@contextmanager
def _watched(model: torch.nn.Module, seen: Seen) -> Iterator[None]:
    """``seen`` is told of all floats that enter and leave every module, the whole model too: it may scale what they give."""

    def tell(path: str, way: str, values: Any) -> None:
        for index, tensor in enumerate(tree_leaves(values)):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.numel():
                seen((path, way, index), tensor.detach())

    running: list[str] = []
    handles = []
    for path, module in model.named_modules():

        def taking(_module: Any, args: Any, kwargs: Any, path: str = path) -> None:
            running.append(path)
            tell(path, "takes", (args, kwargs))

        def giving(_module: Any, _args: Any, output: Any, path: str = path) -> None:
            running.pop()
            tell(path, "gives", output)

        handles += [
            module.register_forward_pre_hook(taking, with_kwargs=True),
            module.register_forward_hook(giving),
        ]
    try:
        with _Scores(lambda scores: tell(running[-1] if running else "", SCORES, scores)):
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Scores(TorchFunctionMode):
    """Tells of the scores of every attention that runs inside."""

    def __init__(self, tell: Callable[[torch.Tensor], None]) -> None:
        super().__init__()
        self.tell = tell

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.nn.functional.scaled_dot_product_attention:
            query, key = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("query", "key")))
            scale = kwargs.get("scale") or query.shape[-1] ** -0.5
            if query.ndim > 3:
                key = key.repeat_interleave(query.shape[-3] // key.shape[-3], -3)
            self.tell((query.float() * scale @ key.float().mT).to(query.dtype))
        return func(*args, **kwargs)


def _tokens(row: Batch) -> str:
    """The row's first tokens, in words; nothing where its input is no text."""
    ids = np.asarray(row.to_json().get("input_ids", [])).reshape(-1)
    if ids.dtype.kind not in "iu" or not ids.size:
        return "the input is in the proof"
    return f"its tokens begin {' '.join(map(str, ids[:SHOWN]))}"


def _is_finite(own: Reference, batch: Batch) -> bool:
    return all(bool(torch.isfinite(torch.from_numpy(value)).all()) for value in own.forward(batch).values())


def _words(place: Place) -> str:
    return f"{place[0] or 'the model itself'} {place[1]}"
