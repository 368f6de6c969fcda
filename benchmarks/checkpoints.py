"""Checkpoints of real architectures' shapes, as the hub has them: sparse files, all zeros, which take no room on the disk,
or random weights."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

SHARD = 10 * 2**30
"""Bytes of a shard, at most, where one tensor is not larger."""


def _llama(layers: int, hidden: int, heads: int, groups: int, inner: int, vocabulary: int = 32_000) -> dict[str, Any]:
    return {
        "hidden_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": groups,
        "intermediate_size": inner, "vocab_size": vocabulary, "max_position_embeddings": 4096,
    }  # fmt: skip


SHAPES: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "llama-0.1b": ("LlamaForCausalLM", "LlamaConfig", _llama(12, 768, 12, 12, 2048), "float32"),
    "llama-0.3b": ("LlamaForCausalLM", "LlamaConfig", _llama(16, 1024, 16, 8, 4096), "float32"),
    "llama-1b": ("LlamaForCausalLM", "LlamaConfig", _llama(22, 2048, 32, 4, 5632), "float32"),
    "llama-3.2-1b": (
        "LlamaForCausalLM", "LlamaConfig",
        _llama(16, 2048, 32, 8, 8192, 128_256) | {
            "tie_word_embeddings": True, "max_position_embeddings": 131_072, "head_dim": 64,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 500_000.0, "factor": 32.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
        "bfloat16",
    ),
    "llama-7b": ("LlamaForCausalLM", "LlamaConfig", _llama(32, 4096, 32, 32, 11_008), "float16"),
    "llama-70b": ("LlamaForCausalLM", "LlamaConfig", _llama(80, 8192, 64, 8, 28_672), "float32"),
    "qwen3-8b": (
        "Qwen3ForCausalLM", "Qwen3Config", _llama(36, 4096, 32, 8, 12_288, 151_936) | {"head_dim": 128}, "bfloat16",
    ),
    "mixtral-8x7b-4-layers": (  # what is fused is written: 32 layers would fill a small disk
        "MixtralForCausalLM", "MixtralConfig",
        _llama(4, 4096, 32, 8, 14_336) | {"num_local_experts": 8, "num_experts_per_tok": 2}, "bfloat16",
    ),
    "t5-11b": (
        "T5ForConditionalGeneration", "T5Config",
        {"vocab_size": 32_128, "d_model": 1024, "d_kv": 128, "d_ff": 65_536, "num_layers": 24, "num_heads": 128}, "float32",
    ),
}  # fmt: skip
"""By name: class, config, its sizes, and the dtype of the checkpoint."""


def make(name: str, folder: Path, *, dtype: str | None = None, values: bool = False) -> int:
    """Write a checkpoint as the hub has it, with shards and an index; returns its bytes.

    Args:
        name: of the shape.
        folder: where to.
        dtype: of the checkpoint; the shape's own when None.
        values: write random weights; else the files are sparse, all zeros.
    """
    import torch
    import transformers
    from transformers.core_model_loading import revert_weight_conversion

    kind, config_kind, sizes, own = SHAPES[name]
    dtype = dtype or own
    config = getattr(transformers, config_kind)(**sizes)
    with torch.device("meta"):
        model = getattr(transformers, kind)(config)
    config.architectures, config.dtype = [kind], dtype
    folder.mkdir(parents=True)
    config.save_pretrained(folder)
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    width = getattr(torch, dtype).itemsize
    tensors = revert_weight_conversion(model, {k: v for k, v in model.state_dict().items() if k not in tied})
    short = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[dtype]
    shards: list[dict[str, Any]] = [{}]
    filled = 0
    for key, tensor in tensors.items():
        count = tensor.numel() * width
        if filled and filled + count > SHARD:
            shards.append({})
            filled = 0
        shards[-1][key] = {"dtype": short, "shape": list(tensor.shape), "data_offsets": [filled, filled + count]}
        filled += count
    places, total = {}, 0
    for number, header in enumerate(shards, 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        places |= dict.fromkeys(header, file)
        text = json.dumps(header | {"__metadata__": {"format": "pt"}}).encode()
        text += b" " * (-len(text) % 8)
        with (folder / file).open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            end = max(entry["data_offsets"][1] for entry in header.values())
            for key, entry in header.items() if values else ():  # in the order of their offsets
                stream.write(_drawn(key, entry["shape"], getattr(torch, dtype)))
            stream.truncate(8 + len(text) + end)
            total += end
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return total


def _drawn(name: str, shape: list[int], dtype: Any) -> memoryview:
    """Random weights at a scale at which attention is peaked and a wrong mask or position shows; norms near 1."""
    import torch

    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
    drawn = 1 + 0.1 * drawn if len(shape) == 1 else drawn * (1.5 / shape[-1] ** 0.5)
    return memoryview(drawn.to(dtype).reshape(-1).view(torch.uint8).numpy())
