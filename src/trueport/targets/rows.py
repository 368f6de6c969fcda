"""Rows of a state that change places."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from trueport.errors import RunError


def taken(
    tensors: Mapping[str, torch.Tensor], axes: Mapping[str, int], rows: Sequence[int] | np.ndarray | torch.Tensor
) -> dict[str, torch.Tensor]:
    """The tensors whose row i is row ``rows[i]``; rows may repeat.

    Args:
        tensors: of a state, by name.
        axes: the axis of the rows by name; a tensor that it does not name, such as a counter, is every row's, and stays.
        rows: their numbers.

    Raises:
        RunError: no axis is known to be that of the rows, and others are asked for than the only one.
    """
    index = rows if isinstance(rows, torch.Tensor) else torch.from_numpy(np.asarray(rows, dtype=np.int64))
    if not axes and any(tensor.ndim for tensor in tensors.values()) and index.tolist() != [0]:
        raise RunError(
            "This state has no axis of rows, so that none of them can be taken", "Export with a dynamic batch."
        )
    return {name: t.index_select(axes[name], index) if name in axes else t for name, t in tensors.items()}
