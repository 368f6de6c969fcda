"""The inputs that a quantisation is made on, never those that judge it; and given prompts, which do both, half and half."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from trueport.errors import TrueportError
from trueport.interface import Interface
from trueport.proof.continued import continued
from trueport.proof.inputs import Batch, Limits, inputs_of, left, right
from trueport.quiet import quiet

SEED = 4711
"""Not the proof's: a scale must not be chosen on the inputs that judge it."""
BATCHES = 8
"""Ragged padded batches per program; the ranges of linear layers' activations hardly grow after the first few."""
LONGEST = 2048
"""Tokens of a prompt that are taken at most: the scores of one attention grow with their square."""
SHOWN = 80
"""Characters of a path in a message."""
ENOUGH = 2**15
"""Tokens of prompts past which no more are calibrated on: what is found on them hardly moves."""
Prompts = tuple[tuple[int, ...], ...]
"""The tokens of each prompt."""


@dataclass(frozen=True)
class Original:
    """What calibration must know of the model: its config, its role, and the prompts to calibrate on, if any are given."""

    config: Any
    role: str
    prompts: Prompts = ()


def calibrating(prompts: Prompts) -> Prompts:
    """Of the given prompts those that scales may be chosen on: the first, and every other one behind it."""
    return prompts[0::2]


def judging(prompts: Prompts) -> Prompts:
    """Those that the gate asks: the others."""
    return prompts[1::2]


def read_prompts(given: str | Path | Sequence[str], tokenizer: Any) -> Prompts:
    """The tokens of the prompts to calibrate and to judge on, each once: one that comes twice could do both.

    Args:
        given: the texts, or a UTF-8 file with one in each line.
        tokenizer: of the model.

    Raises:
        TrueportError: there is no tokenizer, no such file, no token in it, or something else than texts.
    """
    if tokenizer is None:
        raise TrueportError("The model has no tokenizer to read the calibration's prompts with", "Leave them out.")
    texts = list(given) if isinstance(given, list | tuple) else _lines(given)
    if not all(isinstance(text, str) and _is_unicode(text) for text in texts):
        raise TrueportError("The calibration's prompts are not all texts", "Give a list of str, or a text file.")
    with quiet():  # a tokenizer warns of prompts that are too long, which are cut
        rows = tuple(tuple(tokenizer(text)["input_ids"]) for text in texts if text.strip())
    if not any(rows):
        raise TrueportError("The calibration has no prompts", "Give a text file, a prompt in each line.")
    return tuple(dict.fromkeys(row for row in rows if row))


def _lines(path: Any) -> list[str]:
    """Of a text file."""
    if not isinstance(path, str | Path):
        raise TrueportError(
            f"The calibration's prompts are a {type(path).__name__}, not all texts",
            "Give a list of str, or a text file.",
        )
    try:
        # Not splitlines(): a prompt may hold form feeds and other separators. And editors may put a mark in front.
        return Path(path).read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        told = getattr(error, "strerror", None) or "it is no path"
        reason = "it is not UTF-8" if isinstance(error, UnicodeDecodeError) else told
        name = str(path) if len(str(path)) <= SHOWN else f"{str(path)[:SHOWN]}..."
        raise TrueportError(
            f"{name!r} cannot be read: {reason}", "Give a text file, a prompt in each line, or a list of texts."
        ) from error


def _is_unicode(text: str) -> bool:
    """Whether it can be written: a tokenizer refuses halves of surrogate pairs in its own words."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def prompts_of(given: str | Path | Sequence[str], source: Any, otherwise: Any = None) -> Prompts:
    """The tokens of the prompts, as the model of a source reads them, or a tokenizer of that model's where it has none.

    Raises:
        TrueportError: as ``read_prompts``; or the model reads no tokens, or not these.
    """
    if getattr(getattr(source, "model", None), "main_input_name", "input_ids") != "input_ids":
        raise TrueportError("The model reads no tokens to calibrate on", "Leave the calibration's prompts out.")
    # Reading writes into a tokenizer, padding and truncation, and the export would save that.
    tokenizer = getattr(source, "tokenizer", None)
    prompts = read_prompts(given, copy.deepcopy(tokenizer if tokenizer is not None else otherwise))
    check_tokens(prompts, source.model.config)
    return prompts


def batches(interfaces: Mapping[str, Interface], original: Original) -> list[Batch]:
    """The given prompts, one at a time, or rows as the proof draws them, padded left for a decoder and right otherwise.

    Raises:
        TrueportError: prompts are given for a model that reads no tokens, or not these.
    """
    first = interfaces.get("encoder", next(iter(interfaces.values())))
    last = interfaces.get("decoder", first)
    side = "encoder_sequence_length" if original.role == "seq2seq" else "sequence_length"
    bounds = {dimension.name: dimension for dimension in first.dimensions}
    bounds |= {d.name: d for d in last.dimensions if d.name != side}
    maximum = {name: dimension.maximum for name, dimension in bounds.items()}
    shortest = max(bounds[side].minimum, 1) if side in bounds else 1
    limits = Limits(maximum.get(side), maximum.get("sequence_length"), shortest, maximum.get("batch_size"))
    inputs = inputs_of(original.config, original.role, SEED, first, limits)
    pad = left if original.role == "decoder" else right
    if original.prompts:
        if inputs.features is not None or inputs.sound:
            raise TrueportError("The model reads no tokens to calibrate on", "Leave the calibration's prompts out.")
        check_tokens(original.prompts, original.config)
        given = [
            inputs.told(f"calibration {i}", [one], pad, LONGEST, target=12) for i, one in enumerate(original.prompts)
        ]
        enough = np.cumsum([0, *(batch.mask.sum() for batch in given[:-1])]) < ENOUGH
        return [batch for batch, taken in zip(given, enough, strict=True) if taken]
    length = inputs.fits(24)
    pads = [0, length // 3] if first.has_input("attention_mask") else [0, 0]
    return [inputs.draw(f"calibration {index}", pad(length, pads), target=12) for index in range(BATCHES)]


def answered(
    given: Sequence[Batch], original: Original, forward: Callable[[Batch], Mapping[str, np.ndarray]]
) -> list[Batch]:
    """The same batches; behind given sources what a decoder reads is what it says, not drawn tokens.

    Args:
        given: of ``batches``.
        original: of them.
        forward: a batch to ``logits`` (rows, length, vocabulary), among other outputs or not at all.
    """
    if not original.prompts or original.role != "seq2seq":
        return list(given)
    return [_answered(batch, original.config, forward) for batch in given]


def _answered(batch: Batch, config: Any, forward: Callable[[Batch], Mapping[str, np.ndarray]]) -> Batch:
    assert batch.target is not None
    new = batch.target.shape[1] - 1
    return continued(forward, config, batch, new)[0] if new and "logits" in forward(batch) else batch


def check_tokens(prompts: Prompts, config: Any) -> None:
    """Refuse tokens that the model does not know: a runtime would say so in its own words, or stop.

    Raises:
        TrueportError: it names the token.
    """
    largest = max(max(row) for row in prompts)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    known = getattr(text, "vocab_size", None)
    if isinstance(known, int) and largest >= known:
        raise TrueportError(
            f"The calibration's prompts hold the token {largest}; the model knows {known} tokens",
            "Use the tokenizer of this model.",
        )
