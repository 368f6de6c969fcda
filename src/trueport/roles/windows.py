"""The lengths past which a model behaves otherwise: sliding windows, chunks, original rope lengths."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

WINDOW_ATTRIBUTES = (
    "sliding_window",
    "attention_window",
    "window_size",
    "local_attention",
    "attention_chunk_size",
    "local_radius",
    "block_size",
    "global_block_size",
    "local_transformer_stride",
)
"""Config attributes that hold a window in tokens; transformers has no common name for it."""


def windows(config: Any) -> list[int]:
    """Every attention window that the config turns on, ascending, without repeats.

    A window that a switch such as ``use_sliding_window`` turns off, or that no layer type uses, is not one.
    """
    found: set[int] = set()
    for part in _text_configs(config):
        if getattr(part, "use_sliding_window", True) is False:
            continue
        kinds = getattr(part, "layer_types", None)
        if kinds and all(kind == "full_attention" for kind in kinds):
            continue
        for name in WINDOW_ATTRIBUTES:
            found.update(_integers(getattr(part, name, None)))
    return sorted(found)


def rope_limits(config: Any) -> list[int]:
    """Lengths past which scaled rotary embeddings change, ascending."""
    found: set[int] = set()
    for part in _text_configs(config):
        parameters = getattr(part, "rope_parameters", None) or getattr(part, "rope_scaling", None) or {}
        groups = [parameters, *(group for group in parameters.values() if isinstance(group, dict))]
        for group in groups:
            if group.get("rope_type", "default") in ("dynamic", "longrope"):
                found.update(_integers(group.get("original_max_position_embeddings")))
                found.update(_integers(getattr(part, "original_max_position_embeddings", None)))
    return sorted(found)


def _integers(value: Any) -> Iterable[int]:
    if isinstance(value, bool) or value is None:
        return ()
    if isinstance(value, int):
        return (value,) if value > 0 else ()
    if isinstance(value, (list, tuple)):
        return tuple(entry for entry in value if isinstance(entry, int) and entry > 0)
    return ()


def _text_configs(config: Any) -> list[Any]:
    parts = [config]
    for name in ("text_config", "decoder", "encoder"):
        part = getattr(config, name, None)
        if part is not None and hasattr(part, "to_dict"):
            parts.append(part)
    return parts
