"""``python -m benchmarks.gated MODEL [--docs]``: whole exports of a trained model, proven and quantised, and their speed.

MODEL is what ``python -m benchmarks.trained MODEL`` wrote, or another checkpoint with a file prompts.txt in it. Each kind is
exported with ``--optimize cpu --caches in-place`` and the prompts, half of which the gate asks; what it finds, and how many
steps behind 128 tokens fit into one of the float folder's, is the table. ``--docs`` writes it into docs/quantisation.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import bound, context, measure
from benchmarks.contenders import THREADS, Contender, Ours
from benchmarks.kernels import PLACE

BEGIN = "<!-- benchmarks.gated -->"
TRIED = (("float", None), ("int8", None), ("int8", 128), ("int4", None), ("int4", 128))
LENGTH = 128
FIGURES = ("top-1 disagreement", "mean KL divergence", "generated-token disagreement")


def main() -> None:
    """Measure and print a table in Markdown."""
    import torch

    parser = argparse.ArgumentParser(prog="python -m benchmarks.gated", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--turns", type=int, default=8, help="turns of eight steps (default: 8)")
    parser.add_argument("--docs", action="store_true", help="write the table into docs/quantisation.md")
    given = parser.parse_args()
    torch.set_num_threads(THREADS)
    about = context.conditions(measure.machine(), given.turns)
    with tempfile.TemporaryDirectory(prefix="trueport-gated-") as place:
        proofs = {}
        for kind, size in TRIED:
            name = kind if size is None else f"{kind}, blocks of {size}"
            proofs[name] = _exported(given.model, Path(place) / name, kind, size)
            print(name, proofs[name]["verdict"], flush=True)
        made: dict[str, Contender] = {name: Ours(Path(place) / name) for name in proofs}
        turns: dict[str, list[float]] = {name: [] for name in made}
        for turn in range(given.turns):
            for name in list(made)[:: 1 if turn % 2 == 0 else -1]:
                turns[name].append(context.turns_at({name: made[name]}, LENGTH, 1)[name])
    words = [about, _table(proofs, turns)]
    print("\n".join(words))
    if given.docs:
        context.write(BEGIN, words, PLACE)


def _exported(model: Path, out: Path, kind: str, size: int | None) -> dict[str, Any]:
    """The proof of one kind's folder, which is written whatever it says."""
    import trueport
    from trueport.errors import ProofError

    options: dict[str, Any] = {}
    if kind != "float":
        options = {"quantize": kind, "block_size": size, "calibration": model / "prompts.txt"}
    try:
        found = trueport.export(model, out, optimize="cpu", caches="in-place", allow_unproven=True, **options).proof
    except ProofError as error:
        found = error.proof.to_json()  # type: ignore[attr-defined]
    assert found is not None
    return found


def _table(proofs: dict[str, dict[str, Any]], turns: dict[str, list[float]]) -> str:
    heads = ("top-1 agreement", "mean KL, nats", "generated tokens", "proof", "tokens/s", "steps in one of float's")
    lines = ["| kind | " + " | ".join(heads) + " |", "|---|" + "--:|" * len(heads)]
    for name, proof in proofs.items():
        errors = {c["case"].rpartition(": ")[2]: c["error"] for clause in proof["clauses"] for c in clause["cases"]}
        agreed, nats, said = (errors.get(figure) for figure in FIGURES)
        figures = ["", "", ""] if nats is None else [f"{1 - agreed:.3f}", f"{nats:.4f}", f"{1 - said:.3f}"]
        verdict = "held" if proof["verdict"] == "proven" else f"**{proof['verdict']}**"
        faster = statistics.median(slow / fast for slow, fast in zip(turns["float"], turns[name], strict=True))
        lines.append(f"| {name} | {' | '.join(figures)} | {verdict} | {1e3 / min(turns[name]):.1f} | {faster:.2f} |")
    kinds = ", ".join(f"{kind} {aim:g}" for kind, aim in bound.FASTER.items())
    return "\n".join([*lines, "", f"Aims of speed: {kinds}.", ""])


if __name__ == "__main__":
    main()
