"""What the proof asks: seeded token batches with every kind of padding."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from trueport.errors import TrueportError
from trueport.interface import Interface
from trueport.roles.component import position_limits

LARGEST_VOCABULARY = 2**24
"""More tokens than any tokenizer has: a config that says more is broken."""
FEWEST = 3
"""Tokens that batches are drawn from, where the vocabulary has as many."""
DISTANCES = ("relative_attention_max_distance", "max_relative_positions", "max_bucket_distance")
"""Config attributes that name how far relative distances reach."""
Pad = Callable[[int, Sequence[int]], np.ndarray]
"""``left`` or ``right``: a mask of a length with so many zeros in each row."""


@dataclass(frozen=True)
class Batch:
    """One question.

    Attributes:
        ids: (batch, length) int64, the side that can be padded: an encoder's or decoder's tokens, a seq2seq source;
            or (batch, samples) float for sound, (batch, features, frames) for speech, (batch, channels, height, width)
            for images.
        mask: (batch, length) int64, 1 where ``ids`` is real.
        target: (batch, target_length) int64, the decoder's tokens of a seq2seq model.
        types: (batch, length) int64 token types, where the model reads them.
        start: the position of the first real token, where positions are given: one number, or one for each row.
    """

    ids: np.ndarray
    mask: np.ndarray
    target: np.ndarray | None = None
    types: np.ndarray | None = None
    start: int | tuple[int, ...] = 0

    @property
    def size(self) -> int:
        """Rows."""
        return len(self.ids)

    @property
    def measured(self) -> bool:
        """Whether ``ids`` are no tokens, but numbers that something measured: sound, features, pixels."""
        return self.ids.dtype.kind == "f"

    @property
    def decoded(self) -> np.ndarray:
        """The tokens that a decoder steps over."""
        return self.ids if self.target is None else self.target

    @property
    def positions(self) -> np.ndarray:
        """(batch, length) position of each token among the real ones, as ``generate`` counts them."""
        return np.reshape(self.start, (-1, 1)) + np.maximum(self.mask.cumsum(-1) - 1, 0)

    def take(self, rows: Sequence[int]) -> Batch:
        """The batch whose row i is this batch's row ``rows[i]``."""
        index = list(rows)
        target = None if self.target is None else self.target[index]
        types = None if self.types is None else self.types[index]
        start = self.start if isinstance(self.start, int) else tuple(self.start[row] for row in index)
        return Batch(self.ids[index], self.mask[index], target, types, start)

    def trimmed(self, row: int) -> Batch:
        """One row from its first to its last real token."""
        real = np.flatnonzero(self.mask[row])
        span = slice(real[0], real[-1] + 1)
        types = None if self.types is None else self.types[row : row + 1, span]
        target = None if self.target is None else self.target[row : row + 1]
        return Batch(self.ids[row : row + 1, span], self.mask[row : row + 1, span], target, types)

    def span(self, row: int) -> slice:
        """Where ``trimmed`` cuts."""
        real = np.flatnonzero(self.mask[row])
        return slice(int(real[0]), int(real[-1]) + 1)

    def to_json(self) -> dict[str, Any]:
        """The arrays as lists, sound and speech features left out."""
        parts: dict[str, Any] = {}
        if not self.measured:
            parts |= {"input_ids": self.ids.tolist(), "attention_mask": self.mask.tolist()}
        elif self.ids.ndim == 2:
            parts["input_values"] = f"seeded normal of shape {self.ids.shape}"
            parts["attention_mask"] = [_runs(row) for row in self.mask]
        else:
            parts["input_features"] = f"seeded normal of shape {self.ids.shape}"
        if self.types is not None:
            parts["token_type_ids"] = self.types.tolist()
        if self.target is not None:
            parts["decoder_input_ids"] = self.target.tolist()
        return parts


@dataclass(frozen=True)
class Limits:
    """How large the proof's inputs may be: bounds of the padded side, of the target, and of rows; None for unbounded."""

    length: int | None = None
    target: int | None = None
    shortest: int = 1
    rows: int | None = None


class Inputs:
    """Draws batches; the same seed and case give the same batch, whatever was drawn before.

    Args:
        config: the model's config.
        role: ``encoder``, ``decoder`` or ``seq2seq``.
        seed: of all draws.
        limits: bounds on lengths.
        features: (features, frames) where the source is speech, (channels, height, width) where it is an image.
        sound: the fewest samples that the model takes, where the source is sound; else 0. Lengths and masks are then asked
            for in pieces of about so many samples, of each of which the model makes a position or more.
        typed: whether the model reads token types.
        ending: tokens that each row ends in.
    """

    def __init__(
        self,
        config: Any,
        role: str,
        seed: int,
        limits: Limits,
        *,
        features: tuple[int, ...] | None = None,
        sound: int = 0,
        typed: bool = False,
        ending: Sequence[int] = (),
    ) -> None:
        self.config, self.role, self.seed, self.limits = config, role, seed, limits
        self.features, self.sound, self.typed, self.ending = features, sound, typed, tuple(ending)
        self.reach = reach(config)
        self.vocabulary = vocabulary_of(config)
        if not 0 < self.vocabulary <= LARGEST_VOCABULARY:
            raise TrueportError(f"The config says vocab_size {self.vocabulary}", "Mend config.json.")
        self.special = special_ids(config)
        self.pad = next((i for i in (getattr(config, "pad_token_id", None), 0) if isinstance(i, int) and i >= 0), 0)
        self.ordinary = ordinary(self.vocabulary, self.special, self.pad)

    def rng(self, case: str) -> np.random.Generator:
        """A generator of its own for each case."""
        return np.random.default_rng([self.seed, zlib.crc32(case.encode())])

    def fits(self, length: int) -> int:
        """``length``, or the nearest that the model takes."""
        length = max(length, self.limits.shortest)
        return length if self.limits.length is None else min(length, self.limits.length)

    def pieces(self, samples: int) -> int:
        """Pieces of sound that have so many samples, or a few more."""
        return max(1 - (self.sound - samples) // (self.sound | 1), 1)

    def lengthy(self, batch: Batch) -> int:
        """The length of a batch in tokens, or in pieces of sound."""
        return self.pieces(batch.mask.shape[1]) if self.sound else batch.mask.shape[1]

    def words(self, length: int) -> str:
        """A length in words: of tokens, or of how many samples so many pieces of sound are."""
        return f"{(length - 1) * (self.sound | 1) + self.sound} samples" if self.sound else f"length {length}"

    def target_fits(self, length: int) -> int:
        """The same for the decoder's side."""
        bound = self.limits.target if self.role == "seq2seq" else self.limits.length
        return length if bound is None else min(length, bound)

    def draw(self, case: str, mask: np.ndarray, target: int = 5) -> Batch:
        """A batch under ``mask``, (batch, length): random tokens, the pad token where the mask is 0; zeros in sound.

        The real tokens of a row are the first of the row's own stream, wherever the mask puts them: masks of one case and
        length that differ in where they pad ask about the same rows, and the original answers each of those once.
        """
        rng = self.rng(case)
        # The last rows of a family are the more padded ones.
        mask = mask[-self.limits.rows :] if self.limits.rows is not None else mask
        rows, length = mask.shape
        types = None
        if self.features is not None:
            ids = rng.standard_normal((rows, *self.features)).astype(np.float32)
            mask = np.ones((rows, 1), dtype=np.int64)
        elif self.sound:
            mask = in_samples(mask, self.sound)
            ids = _placed(mask, rng.standard_normal(mask.shape).astype(np.float32), 0)
        else:
            ids = self.ended(_placed(mask, rng.choice(self.ordinary, (rows, length)), self.pad), mask)
            if self.typed:
                split = rng.integers(0, length + 1, (rows, 1))
                types = _placed(mask, (np.arange(length) >= split).astype(np.int64), 0)
        drawn = None
        if self.role == "seq2seq":
            drawn = rng.choice(self.ordinary, (rows, self.target_fits(target)))
            start = getattr(self.config, "decoder_start_token_id", None)
            drawn[:, 0] = start if isinstance(start, int) else self.pad
        return Batch(ids, mask.astype(np.int64), drawn, types)

    def told(self, case: str, prompts: Sequence[Sequence[int]], pad: Pad, most: int, target: int = 5) -> Batch:
        """A batch of given prompts, padded by ``pad`` to the longest; at most ``most`` tokens of each, and what fits.

        Token types are 0, as tokenizers have them for one text.
        """
        length = self.fits(min(max(len(prompt) for prompt in prompts), most))
        batch = self.draw(case, pad(length, [max(length - len(prompt), 0) for prompt in prompts]), target)
        ids = batch.ids.copy()
        for row, prompt in enumerate(prompts):
            ids[row, batch.mask[row] == 1] = prompt[:length]
        return replace(batch, ids=ids, types=None if batch.types is None else np.zeros_like(batch.types))

    def full(self, case: str, rows: int, length: int, target: int = 5) -> Batch:
        """A batch without padding."""
        return self.draw(case, np.ones((rows, self.fits(length)), dtype=np.int64), target)

    def scrambled(self, case: str, batch: Batch) -> Batch:
        """The same batch with other tokens, or another sound, wherever the mask is 0."""
        if batch.measured:
            other = self.rng(case).standard_normal(batch.ids.shape).astype(batch.ids.dtype)
            return replace(batch, ids=np.where(batch.mask == 1, batch.ids, other))
        other = self.rng(case).choice(self.ordinary, batch.ids.shape)
        return replace(batch, ids=self.ended(np.where(batch.mask == 1, batch.ids, other), batch.mask))

    def ended(self, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Tokens, (batch, length), each row's last real ones the ending's; the last ones of a row with too few real ones."""
        count = min(len(self.ending), ids.shape[1])
        for row, real in enumerate(mask if count else ()):
            places = np.flatnonzero(real) if real.sum() >= count else np.arange(ids.shape[1])
            ids[row, places[-count:]] = self.ending[-count:]
        return ids

    def with_other_future(self, case: str, batch: Batch, position: int) -> Batch:
        """The same batch with other tokens from ``position`` of the decoder's side on."""
        tokens = batch.decoded.copy()
        fresh = self.rng(case).choice(self.ordinary, tokens.shape)
        fresh = np.where(fresh == tokens, np.roll(self.ordinary, 1)[np.searchsorted(self.ordinary, fresh)], fresh)
        tokens[:, position:] = fresh[:, position:]
        return replace(batch, ids=tokens) if batch.target is None else replace(batch, target=tokens)


def inputs_of(config: Any, role: str, seed: int, interface: Interface, limits: Limits) -> Inputs:
    """What draws batches for an interface: of its tokens, its sound, its features or its images.

    Args:
        config: the model's config.
        role: as ``Inputs`` takes it.
        seed: of all draws.
        interface: of the side that can be padded.
        limits: in the interface's own unit.
    """
    source, features, sound = interface.inputs[0], None, 0
    if not interface.has_input("input_ids"):
        features = tuple(source.shape[1:]) if len(source.shape) > 2 else None
        sound = limits.shortest if features is None and "float" in source.dtype else 0
    if sound:
        most = limits.length
        limits = replace(limits, shortest=1, length=None if most is None else (most - sound) // (sound | 1) + 1)
    return Inputs(
        config, role, seed, limits, features=features, sound=sound,  # type: ignore[arg-type]
        typed=interface.has_input("token_type_ids"), ending=interface.ending,
    )  # fmt: skip


def reach(config: Any) -> int:
    """The longest distance or position that the config names; what lies past a proof's short batches."""
    distances = {value for name in DISTANCES if isinstance(value := getattr(config, name, None), int)}
    return max(position_limits(config) | distances, default=0)


def vocabulary_of(config: Any) -> int:
    """Tokens that every side of the model knows: an encoder and a decoder may each have their own."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    parts = [text, getattr(config, "encoder", None), getattr(config, "decoder", None)]
    sizes = [getattr(part, "vocab_size", None) for part in parts] + [getattr(config, "decoder_vocab_size", None)]
    return min((int(size) for size in sizes if size), default=1000)


def special_ids(config: Any) -> set[int]:
    """Ids that the config gives a meaning, such as padding and end of sequence."""
    parts = [config, getattr(config, "text_config", None), getattr(config, "decoder", None)]
    found: set[int] = set()
    for part in parts:
        for name, value in (part.to_dict() if hasattr(part, "to_dict") else {}).items():
            if name.endswith("_token_id") and value is not None:
                found.update(entry for entry in np.atleast_1d(value).tolist() if isinstance(entry, int))
    return found


def ordinary(vocabulary: int, special: Collection[int], pad: int) -> np.ndarray:
    """The ids to draw from, ascending: none with a meaning, where ``FEWEST`` are left; else all but padding, or all.

    Over one and the same token every attention gives the same, whatever its mask.
    """
    for avoided in (special, {pad}):
        found = np.array([i for i in range(vocabulary) if i not in avoided], dtype=np.int64)
        if len(found) >= FEWEST:
            return found
    return np.arange(vocabulary)


def _placed(mask: np.ndarray, streams: np.ndarray, filler: int) -> np.ndarray:
    """The first entries of each row's stream, (batch, length), in order where the mask is 1; ``filler`` elsewhere."""
    order = np.maximum(mask.cumsum(axis=-1) - 1, 0)
    return np.where(mask == 1, np.take_along_axis(streams, order, axis=-1), filler)


def in_samples(mask: np.ndarray, fewest: int) -> np.ndarray:
    """A mask over pieces of sound, (batch, pieces), as one over its samples.

    The first piece has the ``fewest`` samples that a model takes, the others an odd number: with strides that are even, as
    all are, rows end at every place between two positions.
    """
    piece = fewest | 1
    return np.repeat(mask, piece, axis=1)[:, piece - fewest :]


def _runs(mask: np.ndarray) -> str:
    """A row of a mask in words: ``300 of 1, 100 of 0``."""
    ends = [*(np.flatnonzero(np.diff(mask)) + 1).tolist(), len(mask)]
    return ", ".join(f"{end - start} of {mask[start]}" for start, end in zip([0, *ends], ends, strict=False))


def left(length: int, pads: Sequence[int]) -> np.ndarray:
    """A mask with ``pads[i]`` zeros at the left of row i."""
    return (np.arange(length) >= np.array(pads)[:, None]).astype(np.int64)


def right(length: int, pads: Sequence[int]) -> np.ndarray:
    """A mask with ``pads[i]`` zeros at the right of row i."""
    return left(length, pads)[:, ::-1].copy()


def holes(length: int, rows: int, rng: np.random.Generator) -> np.ndarray:
    """A mask with about a third of zeros strewn in; the first and the last token of each row are real."""
    mask = (rng.random((rows, length)) > 0.35).astype(np.int64)
    mask[:, [0, -1]] = 1
    if length > 3:
        mask[:, 1] = 0
    return mask
