"""``python -m benchmarks.gated MODEL [--docs]``: whole exports of a trained model, proven and quantised, and their speed.

MODEL is what ``python -m benchmarks.trained MODEL`` wrote, or another checkpoint with a file prompts.txt in it. Each kind is
exported with ``--optimize cpu --caches in-place`` and the prompts, half of which the gate asks; what it finds, and how many
steps behind 128 tokens fit into one of the float folder's, is the table. ``--docs`` writes it into docs/quantisation.md.
In place of MODEL, ``examples`` asks the gates of the three examples' models, on samples that their training held out.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from benchmarks import bound, context, measure
from benchmarks.contenders import THREADS, Contender, Ours
from benchmarks.kernels import PLACE

BEGIN = "<!-- benchmarks.gated -->"
TRIED = (("float", None), ("int8", None), ("int8", 128), ("int4", None), ("int4", 128))
LENGTH = 128
EXAMPLES = {"bert-sentiment": "reviews_data", "llama-tales": "tales_data", "t5-dates": "dates_data"}
"""Each with the module that makes its samples."""
ASKED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "onnx": ({}, ("int8", "int8-static", "int4", "auto")),
    "executorch": ({"max_batch": 4, "max_length": 64}, ("8da8w", "8da4w", "int8")),
}
"""Of each target what it is told, and its kinds."""
SAMPLES, SEED = 128, 99
BEGIN_EXAMPLES = "<!-- benchmarks.gated examples -->"
FIGURES = ("top-1 disagreement", "mean KL divergence", "generated-token disagreement")


def main() -> None:
    """Measure and print a table in Markdown."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gated", description=__doc__)
    parser.add_argument("model", type=Path, help="a checkpoint with prompts.txt, or the word examples")
    parser.add_argument("--turns", type=int, default=8, help="turns of eight steps (default: 8)")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/quantisation.md")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    if str(given.model) == "examples":
        words = [_examples(), ""]
        print("\n".join(words))
        if given.docs:
            context.write(BEGIN_EXAMPLES, words, PLACE)
        return
    about = context.conditions(measure.machine(), given.turns)
    with tempfile.TemporaryDirectory(prefix="trueport-gated-") as place:
        proofs = {}
        for kind, size in TRIED:
            name = kind if size is None else f"{kind}, blocks of {size}"
            options: dict[str, Any] = {"optimize": "cpu", "caches": "in-place"}
            if kind != "float":
                options |= {"quantize": kind, "block_size": size, "calibration": given.model / "prompts.txt"}
            proofs[name] = _exported(given.model, Path(place) / name, **options)
            print(name, proofs[name]["verdict"], flush=True)
        made: dict[str, Contender] = {name: Ours(Path(place) / name) for name in proofs}
        turns = context.turns_of(made, LENGTH, given.turns)
    words = [about, _table(proofs, turns)]
    print("\n".join(words))
    if given.docs:
        context.write(BEGIN, words, PLACE)


def _examples() -> str:
    """Markdown: each example's gates."""
    sys.path.insert(0, str(measure.ROOT / "examples"))
    lines = [
        "| model | target | kind | top-1 agreement | mean KL, nats | generated tokens | gate |",
        "|---|---|---|--:|--:|--:|---|",
    ]
    for name, module in EXAMPLES.items():
        samples: Any = importlib.import_module(module).samples(SEED, held_out=True)
        # Of a tale the opening and the rest; of the others a text and its answer, which is no part of what is read.
        texts = [" ".join(parts) if name == "llama-tales" else parts[0] for parts in islice(samples, SAMPLES)]
        for target, options, kind in ((t, o, kind) for t, (o, kinds) in ASKED.items() for kind in kinds):
            with tempfile.TemporaryDirectory(prefix="trueport-gated-") as place:
                model = measure.ROOT / "examples" / "models" / name
                proof = _exported(model, Path(place) / "out", to=target, quantize=kind, calibration=texts, **options)
            verdict = "held" if proof["verdict"] == "proven" else "**refused**"
            lines.append(f"| {name} | {target} | {kind} | {' | '.join(_figures(proof))} | {verdict} |")
            print(lines[-1], flush=True)
    return "\n".join(lines)


def _figures(proof: dict[str, Any]) -> list[str]:
    """Agreement, divergence and generated tokens of a proof, empty where they were not asked."""
    cases = [c for clause in proof["clauses"] for c in clause["cases"] if not c["case"].startswith("drawn tokens")]
    errors = {c["case"].rpartition(": ")[2]: c["error"] for c in cases}
    agreed, nats, said = (errors.get(figure) for figure in FIGURES)
    return [
        "" if agreed is None else f"{1 - agreed:.3f}",
        "" if nats is None else f"{nats:.4f}",
        "" if said is None else f"{1 - said:.3f}",
    ]


def _exported(model: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The proof of one kind's folder, which is written whatever it says."""
    import trueport
    from trueport.errors import ProofError

    try:
        found = trueport.export(model, out, allow_unproven=True, **options).proof
    except ProofError as error:
        found = error.proof.to_json()  # type: ignore[attr-defined]
    assert found is not None
    return found


def _table(proofs: dict[str, dict[str, Any]], turns: dict[str, list[float]]) -> str:
    heads = ("top-1 agreement", "mean KL, nats", "generated tokens", "proof", "tokens/s", "steps in one of float's")
    lines = ["| kind | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for name, proof in proofs.items():
        figures = _figures(proof)
        verdict = "held" if proof["verdict"] == "proven" else f"**{proof['verdict']}**"
        faster = statistics.median(slow / fast for slow, fast in zip(turns["float"], turns[name], strict=True))
        lines.append(f"| {name} | {' | '.join(figures)} | {verdict} | {1e3 / min(turns[name]):.1f} | {faster:.2f} |")
    kinds = ", ".join(f"{kind} {aim:g}" for kind, aim in bound.FASTER.items())
    return "\n".join([*lines, "", f"Aims of speed: {kinds}.", ""])


if __name__ == "__main__":
    main()
