"""The main job on real small models: export, prove, generate, and say where the report lies."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console
from transformers import AutoTokenizer

import trueport
from trueport.proof.report import headline, table

HERE = Path(__file__).parent
OUT = HERE.parent / "out" / "demo"
PROMPTS = {
    "t5-dates": ["the 3rd of May 1998", "July 14, 2021", "29 Feb 2004"],
    "llama-tales": ["In the forest lived", "Once there was a", "Long ago, a clever"],
}


def main() -> None:
    """Export both models, print their proofs, and let them speak."""
    console = Console(highlight=False)
    for name, prompts in PROMPTS.items():
        console.rule(f"[bold]{name}")
        started = time.perf_counter()
        artifact = trueport.export(HERE / "models" / name, OUT / name, force=True)
        assert artifact.proof is not None
        console.print(table(artifact.proof))
        console.print(headline(artifact.proof), soft_wrap=True, markup=False)
        console.print(f"Exported and proven in {time.perf_counter() - started:.1f} s.")
        for prompt, answer in zip(prompts, answers(OUT / name, prompts), strict=True):
            console.print(f"  {prompt!r} -> {answer!r}", markup=False)
        console.print(f"The report: {(OUT / name / 'report.html').relative_to(HERE.parent)}", soft_wrap=True)


def answers(folder: Path, prompts: list[str]) -> list[str]:
    """What the exported model says to each prompt, in one padded batch."""
    model = trueport.load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(prompts, padding=True, return_tensors="pt")
    tokens = model.generate(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], do_sample=False, max_new_tokens=40
    )
    return [str(text) for text in tokenizer.batch_decode(tokens, skip_special_tokens=True)]


if __name__ == "__main__":
    main()
