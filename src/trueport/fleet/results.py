"""What became of every entry: JSON lines for machines, a page for readers; both from the plan and the journal."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from trueport.errors import StorageError, TrueportError
from trueport.fleet.job import RIGHT
from trueport.fleet.limits import time_words
from trueport.fleet.plan import Plan
from trueport.fleet.storage import Store
from trueport.pages import templates_of
from trueport.words import clean, count_words, size_words

RESULTS, REPORT = "results.jsonl", "report.html"
FACTS = (
    "status", "reason", "url", "attempt", "seconds", "peak", "size", "clauses", "key", "model", "options", "found", "node",
)  # fmt: skip
"""What a row has of the event that ended its entry, where that has it."""
WAITING, RUNNING = "waiting", "running"


def rows(plan: Plan, events: Sequence[Mapping[str, Any]], *, going_on: bool = False) -> list[dict[str, Any]]:
    """One for each entry, in the plan's order.

    Each has ``name``, ``status`` and ``model``. When the last event of an entry is not its end, its status is ``running``
    or, before an attempt and where no run is going on, ``waiting``.
    """
    last: dict[str, Mapping[str, Any]] = {event["name"]: event for event in events if "name" in event}
    found = []
    for entry in plan.entries:
        event = last.get(entry.name, {"event": ""})
        row: dict[str, Any] = {"name": entry.name, "model": entry.model}
        if event["event"] == "finished":
            row |= {name: event[name] for name in FACTS if event.get(name) is not None}
        elif event["event"] == "started" and going_on:
            row |= {"status": RUNNING, "attempt": event["attempt"]}
        else:
            row |= {"status": WAITING} | ({"reason": event["reason"]} if event["event"] == "retry" else {})
        found.append(row)
    return found


def write_results(state: Path, name: str, found: Sequence[Mapping[str, Any]]) -> None:
    """Write ``results.jsonl`` and ``report.html``, each whole or not at all.

    Raises:
        StorageError: they cannot be written.
    """
    for path, text in ((state / RESULTS, lines(found)), (state / REPORT, html(name, found))):
        replace_text(path, text)


def replace_text(path: Path, text: str) -> None:
    """Write a file so that it is the old one or the new one at any moment."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        beside.write_text(text, encoding="utf-8")
        beside.replace(path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise StorageError(f"{path} cannot be written: {error.strerror}", "Give another place.") from error


def publish_results(store: Store, state: Path, name: str, found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Put results and report beside the artefacts, under the plan's name; a sentence where that cannot be."""
    try:
        store.write_text(f"{name}.fleet.jsonl", lines(found))
        store.write_text(f"{name}.fleet.html", html(name, found, beside=True))
    except TrueportError as error:
        return [f"The report is only in {state}: {error}"]
    return []


def lines(found: Sequence[Mapping[str, Any]]) -> str:
    """The rows as JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in found)


def headline(found: Sequence[Mapping[str, Any]]) -> str:
    """How many of how many, in one sentence."""
    counts: dict[str, int] = {}
    for row in found:
        counts[row["status"]] = counts.get(row["status"], 0) + 1
    parts = [f"{count} {status}" for status, count in counts.items()]
    return f"{count_words(len(found), 'model')}: {', '.join(parts)}."


def words(row: Mapping[str, Any]) -> str:
    """One line on what became of an entry."""
    facts = []
    if "seconds" in row:
        facts.append(time_words(row["seconds"]))
    if row.get("peak"):
        facts.append(f"peak {size_words(row['peak'])}")
    if row.get("attempt", 1) > 1:
        facts.append(f"attempt {row['attempt']}")
    if row.get("found"):
        facts.append("found in place")
    inner = f" ({', '.join(facts)})" if facts else ""
    return f"{row['name']}: {row['status']}{inner}" + (f". {row['reason']}" if row.get("reason") else "")


def html(name: str, found: Sequence[Mapping[str, Any]], *, beside: bool = False) -> str:
    """The report: a page that stands alone, the same bytes for the same results; ``beside`` the artefacts or elsewhere."""
    environment = templates_of(__file__, escaped=True)
    name, found = clean(name), clean(found)
    return environment.get_template("report.html").render(
        name=name,
        sentence=headline(found),
        right=all(row["status"] in RIGHT for row in found),
        rows=[_view(row, beside) for row in found],
    )


def _view(row: Mapping[str, Any], beside: bool) -> dict[str, Any]:
    status = row["status"]
    kind = "pass" if status == "proven" else "open" if status in ("unproven", WAITING, RUNNING) else "fail"
    failed = [clause["clause"] for clause in row.get("clauses", []) if clause["status"] == "fail"]
    return {
        "name": row["name"],
        "status": status,
        "kind": kind,
        "model": row["model"],
        "options": ", ".join(f"{name} = {json.dumps(value)}" for name, value in row.get("options", {}).items()),
        "reason": row.get("reason", ""),
        "failed": ", ".join(dict.fromkeys(failed)),
        # An artefact that was written brings its own report.
        "report": f"{row['name'] if beside else row['url']}/report.html" if row.get("size") else "",
        "seconds": time_words(row["seconds"]) if "seconds" in row else "–",
        "peak": size_words(row["peak"]) if row.get("peak") else "–",
        "size": size_words(row["size"]) if row.get("size") else "–",
        "attempt": row.get("attempt", "–"),
    }
