"""Which keys a layer's queries see, by the numbers in front of its softmax."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from trueport.graphs.audit.experiment.evaluator import Budget, Evaluator
from trueport.graphs.audit.experiment.folded import heads_first
from trueport.graphs.audit.experiment.known import Known, UnknownError

if TYPE_CHECKING:
    from trueport.graphs.audit.experiment.inputs import Trial
    from trueport.graphs.audit.sites import Site
    from trueport.graphs.audit.view import View

SCORES = (7.0, -7.0)
"""What all scores count as, in turn: a mask must hide its keys whatever sign they have."""
FAINT = 15.0
"""How far below the best of its row a key counts as hidden; the weakest fill is 20."""


@dataclass(frozen=True)
class Seen:
    """What a layer's queries see.

    Attributes:
        keys: bool (rows, heads, queries, keys), heads or queries 1 where all are alike.
        blind: bool (rows, heads, queries), whether a query's keys are hidden as others' are, all of them.
        spread: what a query all of whose keys are hidden sees as the best and the worst of them, where that makes a
            difference; None without such a query.
    """

    keys: Any
    blind: Any
    spread: tuple[float, float] | None = None

    def equals(self, other: Seen) -> bool:
        """Whether the same keys are seen, by the same queries."""
        return np.array_equal(self.keys, other.keys) and np.array_equal(self.blind, other.blind)


class Watcher:
    """Looks at the layers of one graph under one filling of its inputs.

    Args:
        view: the graph.
        trial: the filling.
        budget: what may be computed.
    """

    def __init__(self, view: View, trial: Trial, budget: Budget) -> None:
        self.view = view
        self.trial = trial
        self.budget = budget
        self.walks = self._set_out(taken=True)
        self._others: list[Evaluator] = []

    def _set_out(self, *, taken: bool) -> list[Evaluator]:
        """A walk for each score, that takes these branches where hidden states decide."""
        products = [site.scores for site in self.view.sites if site.scores is not None]
        trial = self.trial
        walks = []
        self.budget.spend(100 * len(products))
        for score in SCORES:
            known = trial.given | {id(node.outputs[0]): Known(np.float32(score), True) for node in products}
            walks.append(Evaluator(self.view, known, trial.axes, trial.shapes, score, self.budget, taken=taken))
        return walks

    def readings(self, site: Site) -> list[Seen]:
        """What may be seen: more than one reading where heads and rows share an axis, and nothing tells their order.

        Raises:
            UnknownError: the masks cannot be worked out, or lie in another layout than (..., queries, keys); or hidden
                states decide which of two there are.
        """
        found = self._read(site, self.walks)
        if any(walk.guessed for walk in self.walks):
            self._others = self._others or self._set_out(taken=False)
            others = self._read(site, self._others)
            if len(found) != len(others) or not all(map(Seen.equals, found, others)):
                raise UnknownError
        return found

    def _read(self, site: Site, walks: list[Evaluator]) -> list[Seen]:
        self.budget.spend(self.trial.mask.size)
        layouts = [list(self._layouts(site, walk)) for walk in walks]
        return [_seen(list(arrays), zeros=site.zeros) for arrays in zip(*layouts, strict=True)]

    def _layouts(self, site: Site, walk: Evaluator) -> Iterator[Any]:
        """The numbers in front of the softmax, (rows, heads, queries, keys)."""
        rows, keys = self.trial.mask.shape
        if site.fused:
            whole = sum(self._slot(site, walk, name) for name in ("mask", "bias", "lengths"))
            yield self._placed(np.asarray(whole), rows, keys)
            return
        assert site.given is not None and site.scores is not None
        found = walk.of(site.given)
        if not found.score:
            raise UnknownError
        array = np.asarray(found.array, dtype=np.float64)
        for factor in self._factors(site, walk):
            with np.errstate(divide="ignore", invalid="ignore"):
                array = array + np.log(factor)
        axis = site.axis(self.view)
        if axis is None:
            raise UnknownError
        rank = max(array.ndim, 2, len(walk.shape(site.scores.outputs[0]) or ()), axis + 1)
        array = array.reshape((1,) * (rank - array.ndim) + array.shape)
        if axis % rank != rank - 1:
            array = self._keys_last(array, axis % rank, walk.shape(site.given))
        if rank == 3 and array.shape[0] not in (1, rows):
            if array.shape[0] % rows:
                raise UnknownError
            first = heads_first(walk, site.scores.inputs[0], rows)
            if not first:
                yield self._placed(array.reshape(rows, -1, *array.shape[1:]), rows, keys)
            if first in (None, True):
                yield self._placed(array.reshape(-1, rows, *array.shape[1:]).swapaxes(0, 1), rows, keys)
            return
        if rank == 3:
            array = array[:, None]
        yield self._placed(array, rows, keys)

    def _factors(self, site: Site, walk: Evaluator) -> Iterator[Any]:
        """Masks that exponentials, or weights, are multiplied by."""
        if site.spelled is not None and site.spelled.factor is not None:
            yield np.asarray(walk.of(site.spelled.factor).array, dtype=np.float64)
        behind = None if site.behind is None else walk.of(site.behind.factor)
        if site.behind is not None and behind is not None and not behind.score:
            factor = np.asarray(behind.array, dtype=np.float64)
            yield 1.0 * (factor == 0) if site.behind.hides else factor

    def _keys_last(self, array: Any, axis: int, shape: list[int] | None) -> Any:
        """Scores whose keys lie on another axis, with the keys behind the queries: the queries are told by their number."""
        sizes = list(array.shape if shape is None or len(shape) != array.ndim else shape)
        del sizes[axis]
        array = np.moveaxis(array, axis, -1)
        keys = self.trial.mask.shape[1]
        queries = [size in (keys, keys - self.trial.past) for size in sizes]
        return array.swapaxes(1, 2) if len(sizes) == 3 and queries[1] and not queries[2] else array

    def _slot(self, site: Site, walk: Evaluator, name: str) -> Any:
        """An operator's mask as numbers to add."""
        value = site.slot(name)
        if value is None:
            return 0.0
        array = np.asarray(walk.of(value).array)
        microsoft = site.node.domain == "com.microsoft"
        hides = -np.inf if site.zeros else site.filter_value
        if name == "lengths" or (name == "mask" and microsoft and array.ndim < 2):
            # GroupQueryAttention is given the last key's place, the others how many keys there are.
            last = array.reshape(-1) - (0 if site.node.op_type == "GroupQueryAttention" else 1)
            rows, keys = self.trial.mask.shape
            if len(last) != rows:
                raise UnknownError
            return np.where(np.arange(keys) > last[:, None], hides, 0.0)[:, None, None]
        if name == "mask" and microsoft:
            array = array[:, None, None] if array.ndim == 2 else array[:, None]
        if (name == "mask" and microsoft) or array.dtype.kind == "b":
            return np.where(array.astype(np.float64) > 0, 0.0, hides)
        return array.astype(np.float64)

    def _placed(self, array: Any, rows: int, keys: int) -> Any:
        """Four axes of what may have fewer or more.

        Raises:
            UnknownError: its axes are others than rows, heads, queries and keys.
        """
        while array.ndim > 4:
            array = array.reshape(array.shape[0], array.shape[1] * array.shape[2], *array.shape[3:])
        array = array.reshape((1,) * (4 - array.ndim) + array.shape)
        if array.shape[0] not in (1, rows) or array.shape[-1] not in (1, keys) or np.isnan(array).any():
            raise UnknownError
        if array.shape[0] > 1 and array.shape[-1] == 1 and array.shape[-2] == 1 and keys > 1:
            raise UnknownError  # one number for each row: its keys were cut off, or looked at together
        return np.broadcast_to(array, (rows, *array.shape[1:-1], keys))


def _seen(arrays: list[Any], *, zeros: bool) -> Seen:
    """A key is seen if it is under any score; one that gets -inf is not where ``zeros`` stand for a row without keys."""
    with np.errstate(invalid="ignore"):
        best = [array.max(axis=-1, keepdims=True) for array in arrays]
        keys = [array >= top - FAINT for array, top in zip(arrays, best, strict=True)]
        if zeros:
            keys = [seen & (array > -np.inf) for seen, array in zip(keys, arrays, strict=True)]
        most = [array.max(axis=(1, 2, 3), keepdims=True) for array in arrays]
        blind = [(array < top - FAINT).all(axis=-1) for array, top in zip(arrays, most, strict=True)]
    spreads = [_spread(array, none) for array, none in zip(arrays, blind, strict=True)]
    return Seen(keys[0] | keys[1], blind[0] & blind[1], None if None in spreads or zeros else spreads[0])


def _spread(array: Any, blind: Any) -> tuple[float, float] | None:
    """The best and the worst key of the first query that has none, and prefers some all the same."""
    rows = np.broadcast_to(array, (*blind.shape, array.shape[-1]))[blind]
    with np.errstate(invalid="ignore"):
        uneven = (rows.max(axis=-1) - rows.min(axis=-1) > FAINT) & (rows.max(axis=-1) > -np.inf)
    found = rows[uneven]
    return (float(found[0].max()), float(found[0].min())) if len(found) else None


def leaks(seen: Seen, mask: Any, past: int, hidden: Any = None) -> bool:
    """Whether a query of a real token sees a key that is hidden.

    Args:
        seen: by a layer.
        mask: which keys are real, bool (rows, keys).
        past: how many of them lie before the first query.
        hidden: the keys that must not be seen, in place of those that are not real.
    """
    hidden = ~mask if hidden is None else hidden
    return bool((seen.keys & real_queries(seen, mask, past) & hidden[:, None, None]).any())


def own_queries(seen: Seen, mask: Any, past: int) -> Any:
    """Which queries are real tokens, bool (rows, queries); None where they are others than the keys."""
    return {mask.shape[1]: mask, mask.shape[1] - past: mask[:, past:]}.get(seen.keys.shape[2])


def real_queries(seen: Seen, mask: Any, past: int) -> Any:
    """Which queries count, bool (rows, heads or 1, queries, 1): real tokens.

    Where they are others than the keys, or lie beside heads on one axis, all do that see any key: padding may see none.
    """
    own = own_queries(seen, mask, past)
    return ~seen.blind[..., None] if own is None else own[:, None, :, None]


def misplaced(seen: Seen, mask: Any, past: int) -> bool:
    """Whether no token sees itself, or all see what follows and none what goes before, where keys are queries too."""
    keys = mask.shape[1]
    if seen.keys.shape[2] != keys - past or seen.keys.shape[2] == 1:
        return False
    places, own = np.arange(keys), past + np.arange(keys - past)[:, None]
    visible = seen.keys & real_queries(seen, mask, past) & mask[:, None, None]
    itself, before, behind = (bool((visible & where).any()) for where in (places == own, places < own, places > own))
    return not itself or (behind and not before)


def multiplied(watcher: Watcher, site: Site, reached: set[int]) -> ir.Node | None:
    """The Mul by which a mask of zeros and ones meets scores, queries or keys; None without one."""
    walk = watcher.walks[0]
    values = site.node.inputs[:2] if site.scores is None else [site.given, *site.scores.inputs[:2]]
    for node in watcher.view.backwards(values):
        if node.op_type != "Mul":
            continue
        for factor, other in (node.inputs, node.inputs[::-1]):
            if factor is None or other is None or id(factor) not in reached:
                continue
            try:
                found, met = walk.of(factor), walk.of(other)
            except UnknownError:
                continue
            if met.score and not found.score and set(np.unique(found.array)) == {0.0, 1.0}:
                return node
    return None
