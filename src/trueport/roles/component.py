"""What a role hands to capture: a module with named inputs and outputs, and sizes to trace it at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from trueport.errors import CaptureError
from trueport.interface import Interface, Tensor, terms

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TRACE_SIZES = {
    "batch_size": 2,
    "sequence_length": 3,
    "past_sequence_length": 5,
    "encoder_sequence_length": 11,
    "past_encoder_sequence_length": 4,
}
"""Sizes of the traced sample: pairwise different, none of them 0 or 1, which torch.export specialises."""


@dataclass(frozen=True)
class Component:
    """One graph to be: ``module(**inputs)`` returns a dict of tensors, named as in ``interface``.

    ``stem`` is the file's name without its ending. ``sizes`` are the dimension sizes of the traced sample. ``bounded``
    components state each dimension's largest size, by which a runtime plans its memory. ``feeds`` is the sample to trace,
    where not any will do. ``stand_ins`` are inputs that the module takes and nothing reads, and those that it is given
    instead: the state of layers that are left out.
    """

    name: str
    stem: str
    module: nn.Module
    interface: Interface
    sizes: Mapping[str, int]
    bounded: bool = False
    feeds: Mapping[str, torch.Tensor] | None = None
    stand_ins: Mapping[str, str] = field(default_factory=dict)


def sample(interface: Interface, sizes: Mapping[str, int], dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Inputs of the given sizes that any model accepts: ids 0 and the ending, masks 1, positions counted, floats N(0, 1)."""
    generator = torch.Generator().manual_seed(0)
    feeds = {}
    for tensor in interface.inputs:
        shape = tensor.concrete(sizes)
        if tensor.name.endswith("attention_mask"):
            feeds[tensor.name] = torch.ones(shape, dtype=getattr(torch, tensor.dtype))
        elif tensor.name == "position_ids":
            feeds[tensor.name] = torch.arange(shape[-1]).expand(shape).contiguous()
        elif tensor.dtype.startswith("int"):
            feeds[tensor.name] = torch.zeros(shape, dtype=getattr(torch, tensor.dtype))
            if tensor.name == "input_ids" and 0 < len(interface.ending) <= shape[-1]:
                feeds[tensor.name][:, -len(interface.ending) :] = torch.tensor(interface.ending)
        else:
            feeds[tensor.name] = torch.randn(shape, generator=generator).to(getattr(torch, tensor.dtype))
    return feeds


def trace_sizes(interface: Interface, **overrides: int) -> dict[str, int]:
    """The sizes in ``TRACE_SIZES`` of those dimensions that the interface has."""
    used = {term for tensor in interface.inputs for axis in tensor.shape for term in terms(axis)}
    return {name: overrides.get(name, size) for name, size in TRACE_SIZES.items() if name in used}


def float_dtype(model: nn.Module) -> str:
    """The dtype that the model computes in, as a name."""
    return str(next(p for p in model.parameters() if p.is_floating_point()).dtype).removeprefix("torch.")


def position_bound(model: PreTrainedModel) -> tuple[int | None, str]:
    """The length past which a model has no position to give, and the module that bounds it.

    Found from the modules: an ``nn.Embedding`` whose name speaks of positions and that holds as many rows as the config
    has positions (plus an offset, which OPT and BART keep in ``offset`` and RoBERTa in ``padding_idx``), or fewer as
    CANINE's hashed one, is a table indexed by absolute position. Rotary, ALiBi and relative positions have no such
    table and no bound.
    """
    best: tuple[int | None, str] = (None, "")
    limits = position_limits(model.config)
    for name, module in model.named_modules():
        rows = _table_rows(module)
        if rows is None or not _speaks_of_positions(name):
            continue
        offset = getattr(module, "offset", None)
        if offset is None:
            offset = 0 if module.padding_idx is None else module.padding_idx + 1
        usable = rows - offset
        if (
            usable not in limits
            and rows not in limits
            and not (name.endswith("position_embeddings") and usable < max(limits, default=0))
        ):
            continue
        if best[0] is None or usable < best[0]:
            best = (usable, f"{name} has {rows} rows")
    return best


def _table_rows(module: nn.Module) -> int | None:
    """Rows of an embedding table, or of a buffer of sinusoids such as M2M-100's; None for another module."""
    if isinstance(module, nn.Embedding):
        return module.num_embeddings
    sinusoids = dict(module.named_buffers(recurse=False)).get("weights")
    return len(sinusoids) if sinusoids is not None and sinusoids.ndim == 2 else None


def _speaks_of_positions(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return "position" in leaf or leaf == "wpe"


def position_limits(config: Any) -> set[int]:
    """Numbers of positions that a config names."""
    names = (
        "max_position_embeddings",
        "max_encoder_position_embeddings",
        "max_decoder_position_embeddings",
        "max_target_positions",
        "n_positions",
    )
    return {value for name in names if isinstance(value := getattr(config, name, None), int)}


def signature(module: nn.Module | type[nn.Module]) -> set[str]:
    """Names that ``module.forward`` takes."""
    import inspect

    return set(inspect.signature(module.forward).parameters)


def image_input(model: PreTrainedModel) -> Tensor:
    """Pixels of the one size that the model's config names, (batch, channels, height, width).

    Raises:
        CaptureError: the config names no size, or no number of channels.
    """
    size = getattr(model.config, "image_size", None)
    sides = (size, size) if isinstance(size, int) else tuple(size or ())
    channels = getattr(model.config, "num_channels", None)
    if len(sides) != 2 or not isinstance(channels, int):
        lacking, example = ("image_size", "[224, 224]") if len(sides) != 2 else ("num_channels", "3")
        raise CaptureError(
            f"The config of {type(model).__name__} names no {lacking}, and images are exported in one size",
            f'Write it into config.json, as in "{lacking}": {example}, or set model.config.{lacking}; what '
            "preprocessor_config.json makes of an image has that shape.",
        )
    return Tensor(model.main_input_name, float_dtype(model), ("batch_size", channels, *sides))


def features_input(model: PreTrainedModel) -> Tensor | None:
    """A spectrogram of the one shape that a model's table of positions serves; None where the config tells none.

    (batch, frames, mels) where it names a number of frames (AST), (batch, mels, frames) where two convolutions make
    positions of them (Whisper).
    """
    encoder = model.get_encoder()
    mels = getattr(model.config, "num_mel_bins", None)
    frames, positions = (getattr(model.config, name, None) for name in ("max_length", "max_source_positions"))
    if mels is None:
        return None
    if positions is not None and hasattr(encoder, "conv1") and hasattr(encoder, "conv2"):
        frames = positions * encoder.conv1.stride[0] * encoder.conv2.stride[0]
        return Tensor(model.main_input_name, float_dtype(model), ("batch_size", mels, frames))
    if frames is None or getattr(model.config, "patch_size", None) is None:
        return None
    return Tensor(model.main_input_name, float_dtype(model), ("batch_size", frames, mels))


def sound_inputs(model: PreTrainedModel, length: str) -> list[Tensor]:
    """The samples of a sound and, where the model reads it, their ``attention_mask``, (batch, samples)."""
    shape = ("batch_size", length)
    inputs = [Tensor(model.main_input_name, float_dtype(model), shape)]
    if "attention_mask" in signature(model):
        inputs.append(Tensor("attention_mask", "int64", shape))
    return inputs


def text_inputs(config: Any, names: set[str], length: str) -> list[Tensor]:
    """``input_ids`` and, where the model reads them, ``attention_mask`` and ``token_type_ids``, (batch, length)."""
    shape = ("batch_size", length)
    inputs = [Tensor("input_ids", "int64", shape)]
    if "attention_mask" in names:
        inputs.append(Tensor("attention_mask", "int64", shape))
    if "token_type_ids" in names and (getattr(config, "type_vocab_size", 0) or 0) > 1:
        inputs.append(Tensor("token_type_ids", "int64", shape))
    return inputs
