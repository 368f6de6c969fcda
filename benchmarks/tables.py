"""Results to tables, ratios first: rich on the terminal, Markdown in docs/benchmarks.md."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.measure import median, spread

if TYPE_CHECKING:
    from rich.table import Table as RichTable

OURS, PROVEN, PEER, EAGER = "trueport", "trueport with proof", "transformers.exporters", "eager"
OUR_PROGRAM, PEER_PROGRAM = "trueport, .pte", "transformers.exporters, .pte"
"""The same two through ExecuTorch, with XNNPACK's kernels."""
INT8, INT4 = "trueport, int8", "trueport, int4"
"""Our folder with quantised weights, ``--quantize`` behind the comma."""
FUSED_INT8, FUSED_INT4 = f"{INT8}, fused", f"{INT4}, fused"
"""The same with the fusions of ``--optimize cpu --caches in-place``."""
AIM = 0.5
"""Of the peer's export time: what issue 2 asks for."""


@dataclass(frozen=True)
class Table:
    """A title, column names, rows of text and a remark."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    remark: str = ""

    def markdown(self) -> str:
        """As GitHub shows it."""
        lines = [f"| {' | '.join(row)} |" for row in (self.columns, *self.rows)]
        lines.insert(1, "|---" + "|--:" * (len(self.columns) - 1) + "|")
        return "\n".join([f"## {self.title}", "", *lines, "", *([self.remark, ""] if self.remark else [])])

    def rich(self) -> RichTable:
        """For the terminal."""
        from rich.table import Table as RichTable

        table = RichTable(title=self.title, caption=self.remark, title_justify="left", caption_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        return table


def export_table(title: str, runs: dict[str, list[dict[str, Any]]], peer_name: str = PEER) -> Table:
    """Seconds, CPU seconds and memory, as multiples of the peer's first."""
    peer = runs[peer_name]
    rows = []
    for name, own in runs.items():
        rows.append(
            (
                name,
                _ratio(own, peer, "seconds"),
                _ratio(own, peer, "cpu_seconds"),
                _ratio(own, peer, "extra_mib"),
                _ranged(own, "seconds", 1),
                _value(own, "cpu_seconds", 1),
                _value(own, "extra_mib", 0),
                _value(own, "peak_mib", 0),
                _files(own),
            )
        )
    columns = ("export", "time / peer", "CPU / peer", "memory / peer", "seconds", "CPU s", "extra MiB", "peak MiB",
               "files / weights")  # fmt: skip
    return Table(title, columns, tuple(rows), " ".join([_verdict(runs), _proof(runs), *_errors(runs)]).strip())


def decode_table(title: str, runs: dict[str, list[dict[str, Any]]], peer_name: str = PEER) -> Table:
    """Tokens per second, as multiples of each peer's first."""
    rows = []
    for name, own in runs.items():
        rows.append(
            (
                name,
                _ratio(own, runs[EAGER], "tokens_per_second"),
                _ratio(own, runs[peer_name], "tokens_per_second"),
                _ranged(own, "tokens_per_second", 1),
                _value(own, "later_tokens_per_second", 1),
                _value(own, "first_token_seconds", 3),
                _value(own, "load_seconds", 1),
                _value(own, "peak_mib", 0),
                _same_tokens(own, runs[EAGER]),
            )
        )
    columns = ("decode", "speed / eager", "speed / peer", "tokens/s", "tokens/s after the first", "first token, s",
               "load, s", "peak MiB", "tokens as eager's")  # fmt: skip
    return Table(title, columns, tuple(rows), " ".join(_errors(runs)))


def _ratio(own: list[dict[str, Any]], other: list[dict[str, Any]], key: str) -> str:
    top, bottom = median(own, key), median(other, key)
    return f"{top / bottom:.2f}" if top is not None and bottom else "–"


def _value(runs: list[dict[str, Any]], key: str, digits: int) -> str:
    value = median(runs, key)
    return "–" if value is None else f"{value:.{digits}f}"


def _ranged(runs: list[dict[str, Any]], key: str, digits: int) -> str:
    bounds = spread(runs, key)
    if bounds is None:
        return "failed"
    return f"{_value(runs, key, digits)} ({bounds[0]:.{digits}f} – {bounds[1]:.{digits}f})"


def _files(runs: list[dict[str, Any]]) -> str:
    files, weights = median(runs, "bytes"), median(runs, "weights")
    return f"{files / weights:.2f}" if files is not None and weights else "–"


def _verdict(runs: dict[str, list[dict[str, Any]]]) -> str:
    pair = (OUR_PROGRAM, PEER_PROGRAM) if OUR_PROGRAM in runs else (OURS, PEER)
    ours, peer = (median(runs[name], "seconds") for name in pair)
    if ours is None or not peer:
        return ""
    ratio = ours / peer
    return f"The aim is {AIM} of the peer's time: {'reached' if ratio <= AIM else 'missed'} with {ratio:.2f}."


def _proof(runs: dict[str, list[dict[str, Any]]]) -> str:
    """What the proof adds, by its own phases; its set-up falls into the last phase before it, ``assets``."""
    plain = [run["phases"].get("assets", 0.0) for run in runs.get(OURS, []) if "error" not in run]
    shares = []
    for run in runs.get(PROVEN, []):
        if "error" not in run:
            proof = sum(seconds for phase, seconds in run["phases"].items() if phase.startswith("prove"))
            if plain:
                proof += max(run["phases"].get("assets", 0.0) - statistics.median(plain), 0.0)
            shares.append((proof / (run["seconds"] - proof), proof, run["seconds"] - proof))
    if not shares:
        return ""
    ratio, proof, rest = sorted(shares)[len(shares) // 2]
    return f"The proof takes {proof:.1f} s, {ratio:.2f} of the export that it follows ({rest:.1f} s)."


def _same_tokens(own: list[dict[str, Any]], eager: list[dict[str, Any]]) -> str:
    ours = next((run["tokens"] for run in own if "error" not in run), None)
    theirs = next((run["tokens"] for run in eager if "error" not in run), None)
    if ours is None or theirs is None:
        return "–"
    return "all" if ours == theirs else f"{sum(a == b for a, b in zip(ours, theirs, strict=True))} of {len(theirs)}"


def _errors(runs: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [f"{name}: {run['error']}" for name, own in runs.items() for run in own[:1] if "error" in run]
