"""A folder in the place of the original: what is made of the folder has to answer as it does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from trueport.errors import RunError
from trueport.proof.inputs import Batch
from trueport.proof.reference import OriginalError, Reference
from trueport.proof.subject import subject_of

if TYPE_CHECKING:
    from trueport.runtime.model import TrueportModel


class FolderReference(Reference):
    """An artefact that is proven already, asked in one pass and without a cache.

    Args:
        folder: as ``trueport.load`` gives it.
        role: its role.
        names: the outputs to give.
    """

    def __init__(self, folder: TrueportModel, role: str, names: Sequence[str]) -> None:
        self.model: Any = folder
        self.role, self.names, self.takes = role, tuple(names), set()
        self._memo = {}
        self._subject = subject_of(role, folder.sessions)  # type: ignore[arg-type]

    @property
    def dtype(self) -> torch.dtype:
        """As if in float32: the range of a half-precision folder is asked of its original alone."""
        return torch.float32

    def steps(self, batch: Batch, chunks: Sequence[int]) -> np.ndarray:
        """A decoder's logits in steps, (batch, length, vocabulary) float64."""
        try:
            return self._subject.decode(batch, chunks).astype(np.float64)
        except RunError as error:
            raise OriginalError(f"The folder as it was refuses {tuple(batch.ids.shape)}: {error.problem}") from error

    def _run(self, batch: Batch, positions: bool) -> dict[str, np.ndarray]:
        try:
            answers = self._subject.forward(batch)
        except RunError as error:
            raise OriginalError(f"The folder as it was refuses {tuple(batch.ids.shape)}: {error.problem}") from error
        return {name: answers[name].astype(np.float64) for name in self.names if name in answers}
