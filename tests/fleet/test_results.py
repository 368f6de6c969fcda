"""The rows of a journal, and the page."""

from __future__ import annotations

from pathlib import Path

from tests.samples import HOSTILE
from trueport.fleet.plan import Entry, Plan
from trueport.fleet.results import html, rows, words


def test_the_last_event_of_an_entry_says_what_became_of_it() -> None:
    plan = Plan(Path("x"), tuple(Entry(name, name, {}) for name in ("never", "begun", "again", "done", "anew")))
    done = {"event": "finished", "status": "proven", "seconds": 3.0, "attempt": 1, "key": "k", "reason": "Proven."}
    events = [
        {"event": "run"},
        {"event": "started", "name": "begun", "attempt": 1},
        {"event": "retry", "name": "again", "attempt": 1, "reason": "it was killed"},
        done | {"name": "done"},
        done | {"name": "gone"},
        done | {"name": "anew"},
        {"event": "started", "name": "anew", "attempt": 1},
    ]
    live = {row["name"]: row["status"] for row in rows(plan, events, going_on=True)}
    assert live == {"never": "waiting", "begun": "running", "again": "waiting", "done": "proven", "anew": "running"}
    assert [row["status"] for row in rows(plan, events)] == ["waiting", "waiting", "waiting", "proven", "waiting"]
    assert words(rows(plan, events)[3]) == "done: proven (3.0 s). Proven."


def test_the_page_is_no_way_in() -> None:
    found = [{"name": "a", "model": HOSTILE, "status": "failed", "reason": HOSTILE, "options": {"task": HOSTILE}}]
    page = html(HOSTILE, found)
    assert "<script>" not in page and "\x1b" not in page and "\u202e" not in page and "&lt;script&gt;" in page


def test_the_page_shows_every_row() -> None:
    row = {
        "status": "proven",
        "seconds": 75.0,
        "peak": 10**9,
        "size": 2 * 10**6,
        "attempt": 2,
        "reason": "Proven: all.",
    }
    clauses = [{"clause": "padding", "status": "fail", "component": "model"}]
    found = [
        {"name": "good", "model": "m", "url": "/out/good", **row},
        {"name": "bad", "model": "n", "status": "failed", "clauses": clauses},
        {"name": "later", "model": "o", "status": "waiting"},
    ]
    page = html("night", found)
    for text in (
        "3 models: 1 proven, 1 failed, 1 waiting.",
        "1 min 15 s",
        "1.0 GB",
        "2.0 MB",
        "Proven: all.",
        "padding",
    ):
        assert text in page
    assert '<a href="/out/good/report.html">' in page and "bad/report.html" not in page
    assert '<a href="good/report.html">' in html("night", found, beside=True)
    assert page == html("night", found)
