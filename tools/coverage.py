"""Export and prove every model of the zoo; the table of what passes is docs/coverage.md.

python tools/coverage.py                  writes docs/coverage.md; exit code 1 when a row is not proven
python tools/coverage.py --only t5 bart   prints those rows and writes nothing
python tools/coverage.py --check          compares the verdicts with the committed table
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs" / "coverage.md"
PROVEN = "proven"
TIMEOUT = 1200
VERSIONS = ("torch", "transformers", "onnx", "onnxscript", "onnx-ir", "onnxruntime")
HEADER = "| architecture | class | role | verdict | worst error / budget | at | notes |"
Row = dict[str, Any]


def main() -> int:
    """Exit code 0 when every row is proven (and, with --check, the committed table says the same)."""
    arguments = _arguments()
    if arguments.worker:
        print(json.dumps(judge(arguments.worker)))
        return 0
    sys.path.insert(0, str(ROOT))
    from tests import zoo

    entries = [entry for entry in zoo.ENTRIES if not arguments.only or entry.name in arguments.only]
    unknown = set(arguments.only or ()) - {entry.name for entry in entries}
    if unknown:
        print(f"not in the zoo: {', '.join(sorted(unknown))}", file=sys.stderr)
        return 2
    with ThreadPoolExecutor(arguments.jobs) as pool:
        rows = list(pool.map(lambda entry: _row(entry, arguments.jobs), entries))
    if arguments.check:
        differences = compare(rows, DOCS.read_text(encoding="utf-8"))
        print("\n".join(differences) or "every verdict is as committed")
        return int(bool(differences))
    if arguments.update:
        order = {entry.name: number for number, entry in enumerate(zoo.ENTRIES)}
        old = {row["name"]: row for row in read(DOCS.read_text(encoding="utf-8")) if row["name"] in order}
        rows = sorted((old | {row["name"]: row for row in rows}).values(), key=lambda row: order[row["name"]])
    if arguments.only and not arguments.update:
        print("\n".join(table(rows)))
    else:
        DOCS.write_text(document(rows), encoding="utf-8")
        print(f"{DOCS.relative_to(ROOT)}: {_count(rows)}")
    return int(any(row["verdict"] != PROVEN for row in rows))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="models at a time")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these models of the zoo")
    parser.add_argument("--update", action="store_true", help="with --only: put those rows into docs/coverage.md")
    parser.add_argument("--check", action="store_true", help="compare with the committed table, write nothing")
    parser.add_argument("--worker", metavar="NAME", help=argparse.SUPPRESS)
    return parser.parse_args()


def _row(entry: Any, jobs: int) -> Row:
    """One model in its own process, so that a crash is a row and not the end."""
    known = {"name": entry.name, "class": entry.model_class, "role": entry.role}
    threads = max(1, (os.cpu_count() or 1) // jobs)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--worker", entry.name]
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        row = known | _failed("stopped", f"took more than {TIMEOUT} s")
    else:
        lines = done.stdout.strip().splitlines()
        if done.returncode == 0 and lines:
            row = known | json.loads(lines[-1])
        else:
            last = (done.stderr.strip().splitlines() or [""])[-1]
            row = known | _failed("crashed", f"exit code {done.returncode}: {last}")
    print(
        f"{row['name']}: {row['verdict']} {row['notes'] if row['verdict'] != PROVEN else ''}",
        file=sys.stderr,
        flush=True,
    )
    return row


def _failed(verdict: str, reason: str) -> Row:
    return {"verdict": verdict, "ratio": None, "clause": "", "notes": _clean(reason)}


def judge(name: str) -> Row:
    """Export and prove in this process; the row without what the zoo knows already."""
    sys.path.insert(0, str(ROOT))
    import trueport
    from tests import zoo
    from trueport.errors import TrueportError

    model = zoo.build(name)
    with tempfile.TemporaryDirectory() as folder:
        try:
            artifact = trueport.export(model, Path(folder) / "out", tokenizer=None)
        except TrueportError as error:
            proof = getattr(error, "proof", None)
            if proof is None:
                return _failed("not exported", str(error))
            content = proof.to_json()
        except Exception as error:
            return _failed("crashed", f"{type(error).__name__}: {error}")
        else:
            content = artifact.proof
    return summary(content)


def summary(proof: dict[str, Any]) -> Row:
    """Verdict, the case that comes closest to its budget, and what the clauses had to say."""
    ratio, worst = 0.0, ""
    for clause in proof["clauses"]:
        for case in clause["cases"]:
            size = _ratio(case)
            if size > ratio or not worst:
                ratio, worst = size, f"{clause['clause']}: {case['case']}"
    notes = []
    for clause in proof["clauses"]:
        if clause["reason"]:
            prefix = "" if clause["status"] == "pass" else f" {clause['status']}"
            notes.append(f"{clause['clause']}{prefix}: {clause['reason']}")
    return {"verdict": proof["verdict"], "ratio": ratio, "clause": _clean(worst), "notes": _clean("; ".join(notes))}


def _ratio(case: dict[str, Any]) -> float:
    if case["error"] is None:
        return float("inf")
    return (
        case["error"] / case["budget"]
        if case["budget"]
        else float("inf") * bool(case["error"])
        if case["error"]
        else 0.0
    )


def _clean(text: str) -> str:
    """One line that a table can hold, without this machine's paths."""
    for place, name in ((str(ROOT), "."), (sys.prefix, "<environment>"), (tempfile.gettempdir(), "<temp>")):
        text = text.replace(place, name)
    text = " ".join(text.split()).replace("|", "\\|")
    return text if len(text) <= 400 else text[:397] + "..."


def table(rows: list[Row]) -> list[str]:
    """The rows as Markdown, in the zoo's order."""
    lines = [HEADER, "|---|---|---|---|--:|---|---|"]
    for row in rows:
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f}"
        verdict = row["verdict"] if row["verdict"] == PROVEN else f"**{row['verdict']}**"
        cells = (row["name"], row["class"], row["role"], verdict, ratio, row["clause"], row["notes"])
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _count(rows: list[Row]) -> str:
    return f"{sum(row['verdict'] == PROVEN for row in rows)} of {len(rows)} proven"


def document(rows: list[Row]) -> str:
    """docs/coverage.md."""
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in VERSIONS)
    words = f"""# Coverage

Written by `python tools/coverage.py`; not by hand. Each row is one model of `tests/zoo.py` (tiny, its weights random
and amplified so that attention is peaked), exported to ONNX and proven by
`trueport.export(model, folder, tokenizer=None)`.

**{_count(rows)}** with {versions}.

"Worst error / budget" is the case that comes closest to failing, over all clauses: above 1 it fails, and the budget is
a multiple of the noise that the model's own dtype has in PyTorch. Notes are the clauses' own words.
"""
    return "\n".join([words, *table(rows)]) + "\n"


def read(committed: str) -> list[Row]:
    """The rows of a document that this command wrote."""
    rows = []
    for line in committed.splitlines():
        cells = line.removeprefix("| ").removesuffix(" |").split(" | ")
        if line.startswith("| ") and len(cells) == 7 and line != HEADER:
            name, kind, role, verdict, ratio, clause, notes = cells
            number = None if ratio == "–" else float(ratio)
            known = {"name": name, "class": kind, "role": role, "verdict": verdict.strip("*")}
            rows.append(known | {"ratio": number, "clause": clause, "notes": notes})
    return rows


def compare(rows: list[Row], committed: str) -> list[str]:
    """One line for every verdict that differs from the committed table's."""
    before = {row["name"]: row["verdict"] for row in read(committed)}
    return [
        f"{row['name']}: {row['verdict']}, committed as {before.get(row['name'], 'absent')}"
        for row in rows
        if row["verdict"] != before.get(row["name"])
    ]


if __name__ == "__main__":
    sys.exit(main())
