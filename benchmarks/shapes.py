"""The models that the benchmarks measure: shapes of known models with random weights from a seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHAPES = {
    "llama": "Llama, 12 layers, hidden 768, 12 heads, vocabulary 32000",
    "t5": "T5-base, 12 + 12 layers, hidden 768, 12 heads, vocabulary 32128",
}
"""Measured shapes and how the tables call them."""
QUICK_SHAPES = {
    "llama": "Llama, 2 layers, hidden 64, 4 heads, vocabulary 320",
    "t5": "T5, 2 + 2 layers, hidden 64, 4 heads, vocabulary 320",
}
"""What ``--quick`` measures instead: enough to see that everything runs."""
PADDING, START = 0, 1


def build(shape: str, *, quick: bool = False) -> PreTrainedModel:
    """The model in eval mode and float32; every call in every process gives the same weights.

    No end-of-sequence token, so that every contender generates as many tokens as it is asked for.
    """
    import torch
    import transformers

    torch.manual_seed(0)
    layers, hidden, heads, vocabulary = (2, 64, 4, 320) if quick else (12, 768, 12, 32000)
    special: dict[str, Any] = {"pad_token_id": PADDING, "bos_token_id": START, "eos_token_id": None}
    if shape == "llama":
        config = transformers.LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=hidden,
            intermediate_size=hidden * 8 // 3,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2048,
            tie_word_embeddings=True,
            **special,
        )
        return transformers.LlamaForCausalLM(config).eval()
    config = transformers.T5Config(
        vocab_size=vocabulary if quick else 32128,
        d_model=hidden,
        d_kv=hidden // heads,
        d_ff=hidden * 4,
        num_layers=layers,
        num_heads=heads,
        decoder_start_token_id=PADDING,
        **special,
    )
    return transformers.T5ForConditionalGeneration(config).eval()


def sample(shape: str, length: int = 8) -> dict[str, Any]:
    """Two rows, one of them left-padded: the sample that suits transformers.exporters best, which learns from it."""
    import torch

    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, 300, (2, length), generator=generator)
    mask = torch.ones_like(ids)
    if shape == "llama":
        mask[1, :2], ids[1, :2] = 0, PADDING
    else:
        mask[1, -2:], ids[1, -2:] = 0, PADDING
    return {"input_ids": ids, "attention_mask": mask}


def prompt(length: int, *, quick: bool = False) -> dict[str, Any]:
    """One unpadded row."""
    import torch

    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, 300 if quick else 32000, (1, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
