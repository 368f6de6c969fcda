"""The original: the unpatched PyTorch model, in its own dtype and in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from trueport.cache_names import cache_of, given_cache
from trueport.errors import ArtifactError, TrueportError
from trueport.proof.doubled import doubled
from trueport.proof.inputs import Batch
from trueport.roles.component import signature
from trueport.weights.streamed import one_by_one, streamed

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from trueport.proof.memory import Memory

Original = TypeVar("Original")


class OriginalError(TrueportError):
    """The original itself refuses these inputs."""


REMEMBERED = 12
"""Answers kept: a clause asks about one batch in several ways, and about the same rows under other padding."""
KEPT = 2**28
"""Bytes that they may take together."""
STEPPED = ("input_ids", "position_ids", "token_type_ids")
"""Inputs of which a step takes its own part."""


def widened(model: PreTrainedModel, *, copied: bool = True) -> PreTrainedModel:
    """The model in float64, which loops over its experts.

    Args:
        model: the original.
        copied: make a copy of the weights; else they are cast wherever they are read, to the same values.
    """
    return one_by_one(wide_copy(model)) if copied else streamed(model, torch.float64)


def wide_original(make: Callable[[bool], Original], ask: Callable[[Original], object], memory: Memory) -> Original:
    """The original in float64, its weights streamed where the proof's memory says so and the model bears it.

    Args:
        make: it, with a copy of the weights or without.
        ask: ask it something.
        memory: of the proof.

    Raises:
        TrueportError: it cannot be streamed, and a copy is too large.
    """
    original = make(not memory.streamed)
    if memory.streamed:
        try:
            ask(original)
        except OriginalError as error:
            memory.copied = f"{error.problem} where its weights are streamed: a float64 copy was made"
            memory.copy(f"{error.problem} where its weights are streamed, and needs a float64 copy")
            original = make(True)
    return original


def wide_copy(model: Any) -> Any:
    """A copy of any module in float64."""
    # The weights are widened first and the rest copied around them: never a third copy in memory.
    tensors = [*model.parameters(), *model.buffers()]
    wider = {id(tensor): _widened(tensor) for tensor in tensors if tensor.is_floating_point()}
    return copy.deepcopy(model, wider).double()


def jittered(model: Any, seed: int) -> Any:
    """A copy of any module with every weight one unit in the last place up or down."""
    generator = torch.Generator().manual_seed(seed)
    moved: dict[int, Any] = {}
    for parameter in model.parameters():
        weight = parameter.detach().clone()
        if weight.is_floating_point():
            signs = torch.rand(weight.shape, generator=generator) < 0.5
            weight.mul_(1 + (signs.to(weight.dtype) * 2 - 1) * torch.finfo(weight.dtype).eps)
        moved[id(parameter)] = torch.nn.Parameter(weight, requires_grad=False)
    return copy.deepcopy(model, moved)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    """The same parameter or buffer in float64."""
    wide = tensor.detach().double()
    return torch.nn.Parameter(wide, tensor.requires_grad) if isinstance(tensor, torch.nn.Parameter) else wide


def _nbytes(answer: Mapping[str, np.ndarray]) -> int:
    return sum(value.nbytes for value in answer.values())


class Reference:
    """The original as a subject, one pass and no cache.

    Args:
        model: the unpatched model, in eval mode.
        role: its role.
        names: the outputs to give.
        wide: whether it is the truth, in float64.
    """

    def __init__(self, model: PreTrainedModel, role: str, names: Sequence[str], *, wide: bool = False) -> None:
        self.model, self.role, self.names, self.wide = model, role, tuple(names), wide
        self.takes = signature(model)
        self._memo: dict[Any, dict[str, np.ndarray]] = {}

    @property
    def dtype(self) -> torch.dtype:
        """Of its weights."""
        return next(self.model.parameters()).dtype

    def exact(self, wide: PreTrainedModel | None = None, *, copied: bool = True) -> Reference:
        """The same in float64; ``wide`` is the model ``widened`` already, and ``copied`` as it takes it."""
        model = widened(self.model, copied=copied) if wide is None else wide
        return Reference(model, self.role, self.names, wide=True)

    def jittered(self, seed: int) -> Reference:
        """The same model with every weight one unit in the last place up or down."""
        return Reference(jittered(self.model, seed), self.role, self.names)

    def forward(self, batch: Batch, *, positions: bool = True) -> dict[str, np.ndarray]:
        """Outputs by name, float64 arrays.

        Args:
            batch: the question.
            positions: give a decoder its positions, as ``generate`` counts them; else it counts for itself.

        Eager attention in float64 gives NaN where a query sees no key at all, and that NaN reaches real rows in the
        next layer: the softmax is taken in float32, where the float64 fill value is -inf. Leading padding is invisible
        to a causal model with explicit positions, so such rows are asked again without it.
        """
        parts = (batch.ids, batch.mask, batch.target, batch.types)
        key = (positions, batch.start, *(None if part is None else part.tobytes() for part in parts))
        if key not in self._memo:
            answer = self._forward(batch, positions)
            size = _nbytes(answer)
            while self._memo and (
                len(self._memo) == REMEMBERED or size + sum(map(_nbytes, self._memo.values())) > KEPT
            ):
                self._memo.pop(next(iter(self._memo)))
            if size > KEPT:
                return answer
            self._memo[key] = answer
        return dict(self._memo[key])

    def _forward(self, batch: Batch, positions: bool) -> dict[str, np.ndarray]:
        results = self._run(batch, positions)
        if self.role == "decoder" and not all(np.isfinite(results[name][batch.mask == 1]).all() for name in results):
            for row in range(batch.size):
                if batch.mask[row].any():
                    alone = self._run(batch.trimmed(row), positions)
                    for name, value in alone.items():
                        results[name][row, batch.span(row)] = value[0]
        return results

    def decode(
        self, batch: Batch, chunks: Sequence[int], reorder: Mapping[int, Sequence[int]] | None = None
    ) -> np.ndarray:
        """The same logits whatever the chunks: the original is asked once, over the whole."""
        for rows in (reorder or {}).values():
            batch = batch.take(rows)
        return self.forward(batch)["logits"]

    def steps(self, batch: Batch, chunks: Sequence[int]) -> np.ndarray:
        """A decoder's logits, (batch, length, vocabulary) float64, step by step over its own cache.

        Raises:
            OriginalError: it refuses them.
        """
        feeds, pieces, cache, start = self._feeds(batch, True), list[np.ndarray](), None, 0
        for size in chunks:
            given = {name: value[:, start : start + size] for name, value in feeds.items() if name in STEPPED}
            masks = {name: value[:, : start + size] for name, value in feeds.items() if name == "attention_mask"}
            past: dict[str, Any] = {} if cache is None else given_cache(self.model, cache)
            result = self._called(batch, given | masks | past | {"use_cache": True})
            cache = cache_of(result)
            pieces.append(result["logits"].to(torch.float64, copy=True).numpy())
            start += size
        return np.concatenate(pieces, axis=1)

    def _called(self, batch: Batch, feeds: Mapping[str, Any]) -> Any:
        try:
            with torch.no_grad(), doubled(self.model) if self.wide else nullcontext():
                return self.model(**feeds, return_dict=True)
        except (RuntimeError, IndexError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise OriginalError(f"The original refuses {tuple(batch.ids.shape)}: {reason}") from error

    def _run(self, batch: Batch, positions: bool) -> dict[str, np.ndarray]:
        result = self._called(batch, self._feeds(batch, positions))
        told = {name: "encoder_last_hidden_state" if self._is_state(name) else name for name in self.names}
        for name, key in told.items():
            if key not in result:  # no refusal of an input, which an artefact may share
                raise ArtifactError(f"The artefact gives out {name}, which the original does not", "Export again.")
        values = {name: result[key] for name, key in told.items()}
        # A copy of float64 is needed too: what is given out may be the module's own.
        return {name: value.to(torch.float64, copy=True).numpy() for name, value in values.items()}

    def _is_state(self, name: str) -> bool:
        return self.role == "seq2seq" and name == "last_hidden_state"

    def _feeds(self, batch: Batch, positions: bool) -> dict[str, Any]:
        feeds: dict[str, Any] = {}
        if batch.measured:
            dtype = next(self.model.parameters()).dtype
            feeds[self.model.main_input_name] = torch.from_numpy(batch.ids).to(dtype)
        else:
            feeds["input_ids"] = torch.from_numpy(batch.ids)
        if batch.ids.ndim == 2 and "attention_mask" in self.takes:
            feeds["attention_mask"] = torch.from_numpy(batch.mask)
        if batch.types is not None:
            feeds["token_type_ids"] = torch.from_numpy(batch.types)
        if positions and self.role == "decoder" and "position_ids" in self.takes:
            feeds["position_ids"] = torch.from_numpy(batch.positions)
        if batch.target is not None:
            feeds["decoder_input_ids"] = torch.from_numpy(batch.target)
        if "use_cache" in self.takes:
            feeds["use_cache"] = False
        return feeds
