"""Lists that grow in a loop of unknown length: appended to inside, stacked afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from trueport.errors import RewriteError


class Growing(list):
    """A list within a traced iteration: only appending is possible, since its length is not known."""

    def __init__(self, before: Sequence[Any]) -> None:
        super().__init__()
        self.before = before
        self.entries: list[Any] = []

    def append(self, entry: Any) -> None:
        """One more entry in each iteration."""
        self.entries.append(entry)

    def extend(self, entries: Any) -> None:
        """As many more in each iteration."""
        self.entries.extend(entries)

    def __iadd__(self, entries: Any) -> Growing:  # type: ignore[override,misc]
        self.entries.extend(entries)
        return self

    def _refused(self, *_: Any, **__: Any) -> NoReturn:
        raise RewriteError(
            "A list that grows in a loop over a tensor is read within the loop, where its length is not known",
            "Keep what the next iteration needs in a variable of its own.",
        )

    __getitem__ = __setitem__ = __iter__ = __len__ = __contains__ = _refused  # type: ignore[assignment]
    pop = insert = remove = index = __bool__ = _refused  # type: ignore[assignment]


class Stacked:
    """Such a list after the loop: what was there before, and a tensor (iterations, ...) for each entry of an iteration."""

    def __init__(self, before: Sequence[Any], columns: Sequence[torch.Tensor], where: str) -> None:
        self.before = list(before)
        self.columns = list(columns)
        self.where = where

    def stack(self) -> torch.Tensor:
        """All entries in order, (entries, ...)."""
        rows = torch.stack(self.columns, 1).flatten(0, 1) if len(self.columns) > 1 else self.columns[0]
        return torch.cat([torch.stack(self.before), rows]) if self.before else rows

    def _refused(self, *_: Any, **__: Any) -> NoReturn:
        raise RewriteError(
            f"{self.where}: the list that grew in this loop is used otherwise than by torch.stack or torch.cat",
            "Stack it right after the loop, in the same function, and go on with the tensor.",
        )

    __getitem__ = __iter__ = __len__ = __contains__ = append = _refused


def joined(function: Callable[..., torch.Tensor], entries: Any, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``torch.stack(entries, ...)`` or ``torch.cat(entries, ...)``, also of a list that grew in a traced loop."""
    if not isinstance(entries, Stacked):
        return function(entries, *args, **kwargs)
    axis = args[0] if args else kwargs.get("dim", kwargs.get("axis", 0))
    rows = entries.stack()
    if function is torch.stack:
        return rows.movedim(0, axis)
    axis = axis if axis >= 0 else axis + rows.ndim - 1
    return rows.movedim(0, axis).flatten(axis, axis + 1)
