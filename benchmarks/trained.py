"""``python -m benchmarks.trained OUT [--minutes 30]``: train a Llama of 0.1 billion weights on docstrings.

A gate says little about random weights. What this writes is small and little trained, but its choices are those of a
language model: the docstrings of Python's library and of PyTorch and transformers, one paragraph in one line, through a
BPE of its own. Every twentieth paragraph is held out and lies in OUT/prompts.txt.
"""

from __future__ import annotations

import argparse
import ast
import math
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.contenders import THREADS

if TYPE_CHECKING:
    import torch
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

PACKAGES = ("torch", "transformers")
"""Their docstrings are read beside those of Python's own library."""
SHORTEST, LONGEST = 60, 2000
"""Characters of a paragraph."""
HELD_OUT = 20
"""Every paragraph of so many is kept from training."""
PROMPTS = 256
"""Held-out paragraphs in prompts.txt."""
LENGTH, ROWS = 128, 8
"""Tokens of a training row, rows of a batch."""
RATE, WARM = 1e-3, 50
"""Largest learning rate, and the steps that lead up to it."""
SHAPE = {
    "hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
    "num_key_value_heads": 12, "max_position_embeddings": 8192,
}  # fmt: skip
"""That of ``benchmarks.bound``."""
VOCABULARY = 32_000
SEED = 20261129


def main() -> None:
    """Train and save."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.trained", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=30, help="of training (default: 30)")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    prose = list(paragraphs())
    kept = [text for index, text in enumerate(prose) if index % HELD_OUT]
    held = [text for index, text in enumerate(prose) if not index % HELD_OUT]
    print(f"{len(prose):,} paragraphs, {sum(map(len, prose)):,} characters", flush=True)
    tokenizer = tokenizer_of(kept)
    model = model_of(tokenizer)
    train(model, rows(kept, tokenizer), given.minutes * 60)
    given.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(given.out)
    tokenizer.save_pretrained(given.out)
    (given.out / "prompts.txt").write_text("\n".join(held[:PROMPTS]) + "\n", encoding="utf-8")


def paragraphs() -> Iterator[str]:
    """Paragraphs of docstrings, blanks made one, each once, in an order that depends on nothing but them."""
    import random

    places = sysconfig.get_paths()
    roots = [Path(places["stdlib"]), *(Path(places["purelib"]) / name for name in PACKAGES)]
    found: dict[str, None] = {}
    for root in roots:
        for path in sorted(root.rglob("*.py")):
            if "site-packages" not in path.relative_to(root).parts:
                found.update(dict.fromkeys(_in_file(path)))
    prose = sorted(found)
    random.Random(SEED).shuffle(prose)
    yield from prose


def _in_file(path: Path) -> Iterator[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, UnicodeDecodeError, ValueError, RecursionError):  # tests of the parser and its like
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            for part in (ast.get_docstring(node) or "").split("\n\n"):
                text = " ".join(part.split())
                if SHORTEST <= len(text) <= LONGEST and text.isprintable():
                    yield text


def tokenizer_of(prose: list[str]) -> PreTrainedTokenizerFast:
    """A byte-level BPE."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(prose, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", padding_side="left",
        clean_up_tokenization_spaces=False, model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip


def model_of(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """Untrained, with tied embeddings."""
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(SEED)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SHAPE, **ids))
    model.generation_config = GenerationConfig(**ids, max_new_tokens=64)
    return model


def rows(prose: list[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[torch.Tensor]:
    """Batches (ROWS, LENGTH + 1) of paragraphs one behind the other, without end."""
    import torch

    size = ROWS * (LENGTH + 1)
    while True:
        held: list[int] = []
        for start in range(0, len(prose), 1000):
            for ids in tokenizer(prose[start : start + 1000])["input_ids"]:
                held += [*ids, tokenizer.eos_token_id]
            while len(held) >= size:
                yield torch.tensor(held[:size]).reshape(ROWS, -1)
                held = held[size:]


def train(model: LlamaForCausalLM, batches: Iterator[torch.Tensor], seconds: float) -> None:
    """AdamW with bfloat16 products, the rate a half cosine over the time given."""
    import torch

    matrices = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)
    model.train()
    start, mean = time.monotonic(), 0.0
    for step, batch in enumerate(batches):
        spent = (time.monotonic() - start) / seconds
        if spent >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARM) * (0.05 + 0.95 * (1 + math.cos(math.pi * spent)) / 2)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(batch[:, :-1], use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        mean = loss.item() if step == 0 else 0.95 * mean + 0.05 * loss.item()
        if step % 50 == 0:
            print(f"step {step}, {seconds * spent:.0f} s: loss {mean:.3f}", flush=True)
    model.eval()


if __name__ == "__main__":
    main()
