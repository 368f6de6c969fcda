"""Which tokens a layer hides though its mask shows them: what padding hides beside itself."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from trueport.graphs.audit.experiment.known import UnknownError
from trueport.graphs.audit.experiment.seen import leaks, own_queries, real_queries

if TYPE_CHECKING:
    from trueport.graphs.audit.experiment.seen import Seen


def hidden_tokens(seen: Seen, whole: Seen, mask: Any, past: int) -> Any:
    """Tokens that a token sees in a row without padding, and not in this one, bool (rows, heads, queries, keys).

    Windows, chunks and the future hide tokens too. They go by a key's place in the row, or by the tokens before it: a key
    counts only if the row without padding shows it at either place.

    Args:
        seen: by a layer.
        whole: by the same layer where no row has padding.
        mask: which keys are real, bool (rows, keys).
        past: how many of them lie before the first query.

    Raises:
        UnknownError: the layer's axes are others where no row has padding.
    """
    if seen.keys.shape != whole.keys.shape:
        raise UnknownError
    shown = whole.keys & _by_count(whole, mask)
    return shown & ~seen.keys & real_queries(seen, mask, past) & mask[:, None, None]


def _by_count(whole: Seen, mask: Any) -> Any:
    """What a row without padding shows at the places that tokens have where padding is left out.

    A query that would lie before the first one stays where it is, and its keys move up to it.
    """
    keys, queries = mask.shape[1], whole.keys.shape[2]
    counted = np.maximum(np.cumsum(mask, axis=1) - 1, 0)
    if queries == 1 and keys > 1:
        behind = counted[:, -1:] - counted
        return np.take_along_axis(whole.keys, (keys - 1 - behind)[:, None, None], axis=3)
    moved = np.take_along_axis(whole.keys, np.broadcast_to(counted[:, None, None], whole.keys.shape), axis=3)
    if queries > keys:
        return moved
    places = counted[:, keys - queries :] - (keys - queries)
    found = np.take_along_axis(moved, np.maximum(places, 0)[:, None, :, None], axis=2)
    return found & (places >= 0)[:, None, :, None]


def with_some_keys(seen: Seen) -> Seen:
    """The same without queries that see every key alike, padding too, as none is left to them."""
    return replace(seen, keys=seen.keys & ~seen.keys.all(axis=-1, keepdims=True))


def by_other_rows(seen: Seen, mask: Any, past: int) -> bool:
    """Whether every row hides what any row hides."""
    anywhere = np.broadcast_to(~mask.all(axis=0), mask.shape)
    return not leaks(with_some_keys(seen), mask, past, anywhere)


def some_hide_themselves(seen: Seen, mask: Any, past: int) -> bool:
    """Whether some tokens see themselves and others do not, where keys are queries too."""
    own = own_queries(seen, mask, past)
    queries = seen.keys.shape[2]
    if own is None or queries != mask.shape[1] - past or queries == 1:
        return False
    itself = np.asarray(np.diagonal(seen.keys, past, axis1=2, axis2=3).any(axis=1))[own]
    return bool(itself.any() and not itself.all())
