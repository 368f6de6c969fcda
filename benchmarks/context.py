"""``python -m benchmarks.context [--quick] [--docs]``: milliseconds of a decode step against the length of the context.

A Llama with a key head for each query head, and one with a third as many. Trueport's folders stand beside PyTorch and
four peers; the caches hold random numbers, which cost what any numbers cost. The contenders take turns at each length,
and the smallest median of the turns counts. Whether one is right is measured too: a batch with a left-padded row, a
prompt and decode steps, against each row alone in PyTorch. ``--docs`` writes the tables into docs/optimize.md.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import environments, measure
from benchmarks.contenders import THREADS, Contender

STEPS = 8
LENGTHS = (128, 512, 1024, 2048, 4096)
PLAIN, FUSED, IN_PLACE, STATIC = (
    "exported",
    "`--optimize cpu`",
    "`--optimize cpu --caches in-place`",
    "torch, static cache",
)
EXPORTERS, EXPORTERS_FUSED = "transformers.exporters", 'transformers.exporters, `ort_fusions="cpu"`'
OURS = {PLAIN: None, FUSED: "copied", IN_PLACE: "in-place"}
PROMPT, PADDED, DECODED = 12, 5, 3
"""Of the check: tokens of the prompt, how many of them the second row lacks, decode steps."""
REFUSES = "no: refuses"
RIGHT = 1e-4
"""Error that is rounding, relative to the largest logit."""
DOCS, BEGIN, END = measure.ROOT / "docs" / "optimize.md", "<!-- benchmarks.context -->", "<!-- end -->"


def main() -> None:
    """Measure and print tables in Markdown."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.context", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tiny shape and short contexts: does everything run?")
    parser.add_argument("--turns", type=int, default=16, help="turns of eight steps at each length (default: 16)")
    parser.add_argument("--key-heads", type=int, action="append", help="of 12 query heads (default: 12, then 4)")
    parser.add_argument("--docs", action="store_true", help="write the tables into docs/optimize.md")
    parser.add_argument(
        "--keep", type=Path, help="a folder for the graphs; what an earlier run left there is measured again"
    )
    given = parser.parse_args()
    words = [conditions(measure.machine(), given.turns)]
    with tempfile.TemporaryDirectory(prefix="trueport-context-") as fresh:
        place = given.keep or Path(fresh)
        for key_heads in given.key_heads or (12, 4):
            words.append(_table(key_heads, place / str(key_heads), given.quick, given.turns))
            print(words[-1], flush=True)
    print(words[0])
    if given.docs:
        write(BEGIN, words)


def write(begin: str, words: list[str], page: Path = DOCS) -> None:
    """Put what was measured into a page, in place of what stands there behind ``begin``."""
    before, found, rest = page.read_text(encoding="utf-8").partition(begin)
    assert found, f"{page.name} lacks {begin}"
    page.write_text("\n".join([before + begin, *words]) + END + rest.partition(END)[2], encoding="utf-8")


def conditions(about: dict[str, Any], turns: int) -> str:
    """Of a measurement, in words."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return (
        f"{about['cores']} cores, {THREADS} threads, load {about['load_at_start']} at the start; {versions}. The best "
        f"of {turns} medians of {STEPS} steps.\n"
    )


def _table(key_heads: int, place: Path, quick: bool, turns: int) -> str:
    import torch

    torch.set_num_threads(THREADS)
    model = model_of(key_heads, quick)
    lengths = LENGTHS[:2] if quick else LENGTHS
    made = {name: _made(make) for name, make in _makers(model, place).items()}
    there = {name: contender for name, contender in made.items() if not isinstance(contender, str)}
    verdicts = {name: _verdict(model, contender) for name, contender in there.items()}
    there = {name: contender for name, contender in there.items() if not verdicts[name].startswith(REFUSES)}
    found: dict[str, list[list[float]]] = {name: [] for name in there}
    for length in lengths:
        for name, medians in turns_of(there, length, turns).items():
            found[name].append(medians)
    count = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    title = f"| {key_heads} key heads, {count:.0f} million weights | right under left padding | "
    lines = [title + " | ".join(map(str, lengths)) + " |", "|---|---|" + "--:|" * len(lengths)]
    for name, contender in made.items():
        figures = [f"{min(medians):.1f}" for medians in found.get(name, [])] or [""] * len(lengths)
        lines.append(f"| {name} | {verdicts.get(name, contender)} | " + " | ".join(figures) + " |")
    return "\n".join([*lines, "", _remark(found, verdicts, lengths)]) + "\n"


def _remark(found: dict[str, list[list[float]]], verdicts: dict[str, str], lengths: tuple[int, ...]) -> str:
    """How our fastest folder stands to the fastest of the others that are right, and of those that are not.

    Turn by turn, as the machine's bandwidth swings, and the turns' median.
    """
    words = []
    for index, length in enumerate(lengths):
        times = {name: values[index] for name, values in found.items()}
        ours = min((times[name] for name in OURS if name in times), key=statistics.median)
        others = {name: _multiple(values, ours) for name, values in times.items() if name not in OURS}
        parts = []
        for kind, right in (("right", True), ("wrong", False)):
            chosen = [value for name, value in others.items() if (verdicts[name] == "yes") is right]
            parts += [f"{min(chosen):.2f} of the {kind}"] if chosen else []
        words.append(f"{', '.join(parts)} at {length}")
    return f"The fastest other, as a multiple of our fastest that is right, the turns' median: {'; '.join(words)}."


def _multiple(times: list[float], than: list[float]) -> float:
    return statistics.median(slow / fast for slow, fast in zip(times, than, strict=True))


def _makers(model: Any, place: Path) -> dict[str, Callable[[], Contender]]:
    """By name, what makes a contender; imports of libraries wait until then."""
    from benchmarks import contenders

    place.mkdir(parents=True, exist_ok=True)

    def graph(peer: str, *, shared: bool) -> Contender:
        checkpoint = _checkpoint(model, place / "checkpoint")
        (path,) = environments.graphs(peer, checkpoint, place / peer)
        return contenders.Graph(path, model.config, shared=shared)

    def exporters(fusions: str | None) -> Contender:
        folder = place / f"exporters {fusions}"
        if not folder.exists():
            _exporters(model, folder, fusions)
        return contenders.Exporters(folder, model.config)

    return {
        **{name: lambda caches=caches: contenders.Ours(_ours(model, place, caches)) for name, caches in OURS.items()},  # type: ignore[misc]
        STATIC: lambda: contenders.Static(model),
        EXPORTERS: lambda: exporters(None),
        EXPORTERS_FUSED: lambda: exporters("cpu"),
        environments.OPTIMUM: lambda: graph(environments.OPTIMUM, shared=False),
        environments.GENAI: lambda: graph(environments.GENAI, shared=True),
    }


def _made(make: Callable[[], Contender]) -> Contender | str:
    """A contender, or why there is none."""
    try:
        return make()
    except environments.MissingError as missing:
        return str(missing)


def _ours(model: Any, place: Path, caches: str | None) -> Path:
    import trueport

    folder = place / f"trueport {caches}"
    if folder.exists():
        return folder
    if caches is None:
        trueport.export(model, folder, tokenizer=None)
    else:
        trueport.export(model, folder, tokenizer=None, optimize="cpu", caches=caches)
    return folder


def _exporters(model: Any, folder: Path, fusions: str | None) -> None:
    """Two graphs, learnt from a sample of two rows with padding, which suits it best."""
    from transformers.exporters import OnnxConfig, OnnxExporter

    from benchmarks import peer, shapes

    peer.warm()
    config = OnnxConfig(dynamic=True, ort_fusions=fusions)
    OnnxExporter().export_for_generation(model, shapes.sample("llama"), config).save_pretrained(folder)


def _checkpoint(model: Any, folder: Path) -> Path:
    """The weights as a peer reads them, and a tokenizer, without which genai's builder does not begin."""
    if not folder.exists():
        from tokenizers import Tokenizer, models
        from transformers import PreTrainedTokenizerFast

        model.save_pretrained(folder)
        words = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1}, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder)
    return folder


def model_of(key_heads: int, quick: bool) -> Any:
    """Its scores are three times the usual initialisation's squared: nearly even attention would hide a wrong mask."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=320 if quick else 8000, hidden_size=192 if quick else 768, num_hidden_layers=2 if quick else 12,
        num_attention_heads=12, num_key_value_heads=key_heads, intermediate_size=256 if quick else 2048,
        max_position_embeddings=8192,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.q_proj.weight *= 3
            layer.self_attn.k_proj.weight *= 3
    return model


def _verdict(model: Any, contender: Contender) -> str:
    """``yes``, or how far it is off: a prompt of two rows, the second padded on the left, and decode steps after it."""
    import torch

    ids = torch.randint(3, 300, (2, PROMPT + DECODED), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[1, :PADDED] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        rows = [model(ids[:1]).logits[0], model(ids[1:, PADDED:]).logits[0]]
    state, parts = contender.start(2, 0, PROMPT + DECODED), []
    try:
        for start, end in [(0, PROMPT), *((PROMPT + i, PROMPT + i + 1) for i in range(DECODED))]:
            given, state = contender.step(ids[:, start:end], mask[:, :end], positions[:, start:end], state)
            parts.append(given.detach().clone())
    except Exception as error:
        return f"{REFUSES} ({' '.join(str(error).split())[:60]})"
    # Some give the logits of a chunk's last token alone.
    kept = [
        slice(end - part.shape[1], end) for part, end in zip(parts, range(PROMPT, PROMPT + DECODED + 1), strict=True)
    ]
    worst = 0.0
    for part, places in zip(parts, kept, strict=True):
        for row, skipped in enumerate((0, PADDED)):
            first = max(places.start - skipped, 0)
            truth = rows[row][first : places.stop - skipped]
            worst = max(worst, float((part[row, part.shape[1] - len(truth) :] - truth).abs().max()))
    largest = max(float(row.abs().max()) for row in rows)
    return "yes" if worst <= RIGHT * largest else f"no: off by {worst:.2g} of {largest:.2g}"


def turns_at(contenders: dict[str, Contender], length: int, turns: int) -> dict[str, float]:
    """Milliseconds of a step behind so many tokens, by contender: the smallest of the turns' medians."""
    return {name: min(medians) for name, medians in turns_of(contenders, length, turns).items()}


def turns_of(contenders: dict[str, Contender], length: int, turns: int) -> dict[str, list[float]]:
    """The same, each turn's median."""
    import torch

    found: dict[str, list[float]] = {name: [] for name in contenders}
    ids = torch.full((1, 1), 5)
    for turn in range(turns):
        for name in list(contenders)[:: 1 if turn % 2 == 0 else -1]:
            contender = contenders[name]
            state, times = contender.start(1, length, 2 * STEPS), []
            for step in range(STEPS + 2):  # two to warm up
                total = length + step + 1
                mask, positions = torch.ones((1, total), dtype=torch.int64), torch.full((1, 1), total - 1)
                begun = time.perf_counter()
                _, state = contender.step(ids, mask, positions, state)
                times.append((time.perf_counter() - begun) * 1e3)
            found[name].append(statistics.median(times[2:]))
    return found


if __name__ == "__main__":
    main()
