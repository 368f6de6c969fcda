"""The artefact as the proof asks it: batches in, arrays out, through the runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from trueport.interface import Interface
from trueport.proof.inputs import Batch


class Session(Protocol):
    """What the proof needs of a target's session."""

    interface: Interface

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """All inputs to all outputs."""
        ...

    def step(self, feeds: Mapping[str, np.ndarray], state: Any) -> tuple[dict[str, np.ndarray], Any]:
        """Plain inputs and a state to plain outputs and the next state."""
        ...

    def empty_state(self, batch: int, given: Mapping[str, Any] | None = None) -> Any:
        """The state before the first step; it may begin with what the encoder gave out."""
        ...


class Subject(Protocol):
    """Anything that answers a batch: an artefact, or the original."""

    def forward(self, batch: Batch) -> dict[str, np.ndarray]:
        """Every output of one pass over the whole batch, by name."""
        ...

    def decode(
        self, batch: Batch, chunks: Sequence[int], reorder: Mapping[int, Sequence[int]] | None = None
    ) -> np.ndarray:
        """Logits, (batch, length, vocabulary), step by step over a cache.

        ``reorder`` maps the index of a chunk to the rows that the cache and the batch are taken by before it; the
        result holds the rows of the last order.
        """
        ...


class EncoderSubject:
    """An encoder's one graph."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def forward(self, batch: Batch) -> dict[str, np.ndarray]:
        """Outputs by name."""
        return self.session.run(text_feeds(self.session.interface, batch))

    def decode(
        self, batch: Batch, chunks: Sequence[int], reorder: Mapping[int, Sequence[int]] | None = None
    ) -> np.ndarray:
        """Encoders have no steps."""
        raise NotImplementedError("an encoder has no steps")


class DecoderSubject:
    """A decoder's one graph."""

    def __init__(self, session: Session) -> None:
        self.session = session

    def forward(self, batch: Batch) -> dict[str, np.ndarray]:
        """``logits`` of the whole batch from an empty cache."""
        return {"logits": self.decode(batch, [batch.ids.shape[1]])}

    def decode(
        self, batch: Batch, chunks: Sequence[int], reorder: Mapping[int, Sequence[int]] | None = None
    ) -> np.ndarray:
        """Logits over the cache in the given chunks."""
        interface = self.session.interface
        state = self.session.empty_state(batch.size) if interface.state or interface.kept else None
        start, pieces = 0, list[np.ndarray]()
        for index, size in enumerate(chunks):
            if reorder and index in reorder:
                rows = list(reorder[index])
                batch, state, pieces = batch.take(rows), state.take(rows), [piece[rows] for piece in pieces]  # type: ignore[union-attr]
            end = start + size
            feeds = {
                "input_ids": batch.ids[:, start:end],
                "attention_mask": batch.mask[:, :end],
                "position_ids": batch.positions[:, start:end],
            }
            outputs, state = self.session.step(_only(self.session.interface, feeds), state)
            pieces.append(outputs["logits"])
            start = end
        return np.concatenate(pieces, axis=1)


class Seq2SeqSubject:
    """An encoder and a decoder graph."""

    def __init__(self, encoder: Session, decoder: Session) -> None:
        self.encoder, self.decoder = encoder, decoder

    def encode(self, batch: Batch) -> dict[str, np.ndarray]:
        """``last_hidden_state`` of the source, (batch, length, hidden), and what else the encoder gives to the decoder."""
        return self.encoder.run(text_feeds(self.encoder.interface, batch))

    def forward(self, batch: Batch) -> dict[str, np.ndarray]:
        """``last_hidden_state`` of the encoder and ``logits`` of the whole target."""
        encoded = self.encode(batch)
        assert batch.target is not None
        logits = self._decode(batch, encoded, [batch.target.shape[1]])
        return {"last_hidden_state": encoded["last_hidden_state"], "logits": logits}

    def decode(
        self, batch: Batch, chunks: Sequence[int], reorder: Mapping[int, Sequence[int]] | None = None
    ) -> np.ndarray:
        """Logits over the cache in the given chunks of the target."""
        return self._decode(batch, self.encode(batch), chunks, reorder)

    def _decode(
        self,
        batch: Batch,
        encoded: Mapping[str, np.ndarray],
        chunks: Sequence[int],
        reorder: Mapping[int, Sequence[int]] | None = None,
    ) -> np.ndarray:
        state = self.decoder.empty_state(batch.size, encoded)
        states = encoded["last_hidden_state"]
        start, pieces = 0, list[np.ndarray]()
        for index, size in enumerate(chunks):
            if reorder and index in reorder:
                rows = list(reorder[index])
                batch, state, states = batch.take(rows), state.take(rows), states[rows]
                pieces = [piece[rows] for piece in pieces]
            feeds = {
                "input_ids": batch.decoded[:, start : start + size],
                "encoder_hidden_states": states,
                "encoder_attention_mask": batch.mask,
                "decoder_attention_mask": np.ones((batch.size, start + size), dtype=np.int64),
            }
            outputs, state = self.decoder.step(_only(self.decoder.interface, feeds), state)
            pieces.append(outputs["logits"])
            start += size
        return np.concatenate(pieces, axis=1)


def subject_of(role: str, sessions: Mapping[str, Session]) -> Subject:
    """The subject for a role over its sessions by component name."""
    if role == "seq2seq":
        return Seq2SeqSubject(sessions["encoder"], sessions["decoder"])
    if role == "decoder":
        return DecoderSubject(sessions["model"])
    return EncoderSubject(sessions["model"])


def text_feeds(interface: Interface, batch: Batch) -> dict[str, np.ndarray]:
    """The batch under the names that the interface takes."""
    if batch.measured:
        return _only(interface, {interface.inputs[0].name: batch.ids, "attention_mask": batch.mask})
    feeds = {"input_ids": batch.ids, "attention_mask": batch.mask, "position_ids": batch.positions}
    feeds["token_type_ids"] = np.zeros_like(batch.mask) if batch.types is None else batch.types
    return _only(interface, feeds)


def _only(interface: Interface, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Those of the feeds that the graph takes, in the dtypes that it takes."""
    from trueport.dtypes import numpy_dtype

    return {
        tensor.name: np.asarray(feeds[tensor.name].astype(numpy_dtype(tensor.dtype), copy=False), order="C")
        for tensor in interface.inputs
        if tensor.name in feeds
    }
