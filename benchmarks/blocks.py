"""``python -m benchmarks.blocks [--quick] [--docs]``: what the size of a block costs a whole decoder in agreement.

A Llama of 0.1 billion random weights, quantised in blocks of each size, with the fusions: how far its logits lie from the
float original's, and from themselves where a row goes another way, one token at a time or beside another row. Relative to
the largest logit. ``--docs`` writes the table into docs/quantisation.md; ``benchmarks.bound`` has the speed.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import bound, context, measure
from benchmarks.kernels import PLACE

BEGIN = "<!-- benchmarks.blocks -->"
TRIED = (("int8", 64), ("int8", 128), ("int4", 32), ("int4", 64), ("int4", 128))
PROMPT, LENGTH = 8, 48


def main() -> None:
    """Measure and print a table in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny model: does everything run?")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/quantisation.md")
    given = parser.parse_args()
    model = bound.model_of(bound.QUICK["tiny"] if given.quick else bound.SHAPES["0.1B"])
    ids = torch.randint(1, model.config.vocab_size, (2, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted = model(ids).logits.numpy()
    columns = (
        "kind",
        "weights of a block",
        "to float",
        "steps to the whole",
        "steps of a row beside another to its own",
    )
    lines = ["| " + " | ".join(columns) + " |", "|---|" + "--:|" * (len(columns) - 1)]
    for kind, size in TRIED:
        with tempfile.TemporaryDirectory(prefix="trueport-blocks-") as place:
            figures = _figures(model, kind, size, ids, wanted, Path(place))
        lines.append(f"| {kind} | {size} | " + " | ".join(f"{figure:.1e}" for figure in figures) + " |")
        print(lines[-1], flush=True)
    if given.docs:
        versions = measure.machine()["versions"]
        context.write(
            BEGIN, [f"onnxruntime {versions['onnxruntime']}, torch {versions['torch']}.\n", *lines, ""], PLACE
        )


def _figures(model: Any, kind: str, size: int, ids: Any, wanted: np.ndarray, place: Path) -> list[float]:
    import trueport

    port = trueport.load(bound.folders(model, kind, place, size)[1])
    whole, alone, beside = _whole(port, ids), _steps(port, ids[:1]), _steps(port, ids)
    return [_distance(whole, wanted), _distance(alone, whole[:1]), _distance(beside[:1], alone)]


def _whole(port: Any, ids: Any) -> np.ndarray:
    return np.asarray(port.step({"input_ids": ids, "attention_mask": torch.ones_like(ids)})[0]["logits"])


def _steps(port: Any, ids: Any) -> np.ndarray:
    """Logits (batch, length, vocabulary) of a prompt and of a token at a time."""
    parts, state, done = [], None, 0
    for until in (PROMPT, *range(PROMPT + 1, LENGTH + 1)):
        feeds = {"input_ids": ids[:, done:until], "attention_mask": torch.ones_like(ids[:, :until])}
        outputs, state = port.step(feeds, state)
        parts.append(np.asarray(outputs["logits"]))
        done = until
    return np.concatenate(parts, axis=1)


def _distance(got: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


if __name__ == "__main__":
    main()
