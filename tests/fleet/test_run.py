"""A fleet on this machine: what is done once stays done, what is unlucky is tried again, what is wrong is told."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.fleet.conftest import Fleet
from tests.fleet.quota import QuotaFileSystem
from trueport.errors import StorageError, TrueportError


@pytest.mark.parametrize("kind", ["file", "quota"])
def test_every_model_is_done_once(fleet: Fleet, kind: str) -> None:
    if kind == "quota":
        fleet.quota(10**6)
    fleet.add("one")
    fleet.add("two", proof=False, name="second")
    summary = fleet.run(jobs=2)
    assert summary.exit_code == 0 and summary.notes == []
    assert fleet.statuses() == {"one": "proven", "second": "unproven"}
    assert fleet.artefacts() == ["one", "second"]
    row = summary.rows[0]
    assert row["size"] > 1000 and row["peak"] > 10**6 and row["attempt"] == 1 and row["reason"].startswith("Proven")
    assert {clause["clause"]: clause["status"] for clause in row["clauses"]}["padding"] == "pass"
    assert (fleet.out / "fleet.fleet.jsonl").read_text() == (fleet.state / "results.jsonl").read_text()
    assert "proven" in (fleet.out / "fleet.fleet.html").read_text()
    assert "what a library prints" in (fleet.state / "logs" / "one.1.log").read_text()

    before = (fleet.state / "results.jsonl").read_text()
    again = fleet.run()
    assert again.exit_code == 0 and (fleet.state / "results.jsonl").read_text() == before
    assert len(fleet.calls("one")) == len(fleet.calls("two")) == 1


def test_a_lost_journal_does_nothing_twice(fleet: Fleet) -> None:
    """Killed between the artefact's last step and the journal's line: the place itself says what is done."""
    fleet.add("one")
    fleet.run()
    (fleet.state / "journal.jsonl").unlink()
    rows = fleet.run().rows
    assert rows[0]["found"] and rows[0]["status"] == "proven" and rows[0]["reason"].startswith("Proven")
    assert len(fleet.calls("one")) == 1


@pytest.mark.parametrize("kind", ["file", "quota"])
def test_an_artefact_that_lost_a_file_is_made_again(fleet: Fleet, kind: str) -> None:
    if kind == "quota":
        fleet.quota(10**6)
    fleet.add("one")
    fleet.run()
    (fleet.out / "one" / "onnx" / "model.onnx").unlink()
    assert fleet.run().exit_code == 0
    assert len(fleet.calls("one")) == 2 and (fleet.out / "one" / "onnx" / "model.onnx").exists()


def test_other_options_replace_only_with_force(fleet: Fleet) -> None:
    fleet.add("one")
    fleet.run()
    fleet.plan.write_text(fleet.plan.read_text() + "opset = 22\n")
    summary = fleet.run()
    assert summary.exit_code == 1 and summary.rows[0]["status"] == "refused"
    assert "earlier export" in summary.rows[0]["reason"] and "force" in summary.rows[0]["reason"]
    assert fleet.run(force=True).exit_code == 0 and len(fleet.calls("one")) == 2
    # Back to the first options: what is in place is another export now.
    fleet.plan.write_text(fleet.plan.read_text().replace("opset = 22\n", ""))
    assert fleet.run().exit_code == 1


def test_a_source_that_changed_is_another_export(fleet: Fleet) -> None:
    fleet.add("one", force=True)
    fleet.run()
    (fleet.folder / "models" / "one" / "config.json").write_text("{}")
    assert fleet.run().exit_code == 0 and len(fleet.calls("one")) == 2


@pytest.mark.parametrize("do", ["die", "leave"])
def test_a_worker_that_is_killed_is_tried_again(fleet: Fleet, do: str) -> None:
    fleet.add("unlucky", do, times=1)
    fleet.add("doomed", do, retries=1)
    summary = fleet.run(jobs=2)
    assert fleet.statuses() == {"unlucky": "proven", "doomed": "crashed"} and summary.exit_code == 1
    assert len(fleet.calls("unlucky")) == 2 and len(fleet.calls("doomed")) == 2
    reason = summary.rows[1]["reason"]
    assert ("SIGKILL" in reason) if do == "die" else ("exit code 3" in reason and "gave up" in reason)
    assert "capture model" in reason
    assert fleet.artefacts() == ["unlucky"]
    assert not list(Path(tempfile.gettempdir()).glob("left-by-the-dead-*"))


@pytest.mark.parametrize("kind", ["file", "quota"])
@pytest.mark.parametrize(("do", "calls"), [("die_after", 1), ("die_within", 2)])
def test_killed_while_it_publishes(fleet: Fleet, kind: str, do: str, calls: int) -> None:
    if kind == "quota":
        fleet.quota(10**6)
    fleet.add("one", do, times=1)
    summary = fleet.run()
    assert summary.exit_code == 0 and len(fleet.calls("one")) == calls
    assert fleet.artefacts() == ["one"] and not (fleet.out / "one" / "trueport.unfinished.json").exists()
    assert [path for path in fleet.out.iterdir() if path.name.startswith(".one")] == []
    assert bool(summary.rows[0].get("found")) == (do == "die_after")


def test_what_cannot_end_otherwise_is_not_tried_again(fleet: Fleet) -> None:
    fleet.add("wrong", "fail")
    fleet.add("bad", "refuse")
    fleet.add("bug", "stumble")
    summary = fleet.run(jobs=2)
    assert fleet.statuses() == {"wrong": "failed", "bad": "refused", "bug": "error"} and summary.exit_code == 1
    assert [len(fleet.calls(name)) for name in ("wrong", "bad", "bug")] == [1, 1, 1]
    assert fleet.artefacts() == []
    assert "padding" in summary.rows[0]["reason"]
    assert json.loads((fleet.state / "proofs" / "wrong.json").read_text())["verdict"] == "failed"
    assert "is no model" in summary.rows[1]["reason"]
    assert "Traceback" in (fleet.state / "logs" / "bug.1.log").read_text()

    fleet.run(jobs=2)  # a failed proof fails again; the others may have been mended from outside
    assert [len(fleet.calls(name)) for name in ("wrong", "bad", "bug")] == [1, 2, 2]
    assert fleet.statuses()["wrong"] == "failed"
    fleet.run(jobs=2, retry_failed=True)
    assert len(fleet.calls("wrong")) == 2


def test_limits(fleet: Fleet) -> None:
    fleet.add("slow", "hang", time="1s")
    fleet.add("fat", "eat", memory="300MB", time="60s")
    summary = fleet.run(jobs=2)
    assert fleet.statuses() == {"slow": "out of time", "fat": "out of memory"}
    slow, fat = summary.rows
    assert "out of time in" in slow["reason"] and "Raise time =" in slow["reason"] and slow["attempt"] == 1
    assert "of 300.0 MB" in fat["reason"] and "weights" in fat["reason"] and fat["peak"] > 300e6
    assert len(fleet.calls("fat")) == 1 and fleet.events("retry") == []
    assert fleet.artefacts() == []


def test_a_disk_that_fills_while_a_worker_writes(fleet: Fleet) -> None:
    fleet.add("one")
    fleet.add("two", "fill", times=2, retries=1)
    summary = fleet.run()
    assert fleet.statuses() == {"one": "proven", "two": "storage"} and "No space left" in summary.rows[1]["reason"]
    assert fleet.artefacts() == ["one"] and summary.exit_code == 1
    assert fleet.run().exit_code == 0  # there is space again
    assert len(fleet.calls("one")) == 1 and len(fleet.calls("two")) == 3


def test_a_store_that_is_full(fleet: Fleet) -> None:
    fleet.quota(390_000)
    fleet.add("one", size=200_000, retries=0)
    fleet.add("two", size=200_000, retries=0)
    summary = fleet.run(jobs=1)
    assert fleet.statuses() == {"one": "proven", "two": "storage"}
    assert "No space left for quota://" in summary.rows[1]["reason"]
    assert not [path for path in (fleet.out / "two").rglob("*") if path.is_file()]  # what is left would fill it further
    fleet.quota(10**6)
    assert fleet.run().exit_code == 0
    assert len(fleet.calls("one")) == 1 and len(fleet.calls("two")) == 2


def test_what_a_store_could_not_remove_the_next_run_removes(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add("one")
    fleet.quota(10**6)

    def gone(*args: Any, **options: Any) -> None:
        raise OSError(5, "the connection is gone")

    with monkeypatch.context() as broken:
        broken.setattr(QuotaFileSystem, "rm", gone)
        assert fleet.run().exit_code == 0
    assert fleet.artefacts() == [".trueport-fleet", "one"]
    assert fleet.run().exit_code == 0 and fleet.artefacts() == ["one"] and len(fleet.calls("one")) == 1


def test_a_place_that_workers_cannot_see(fleet: Fleet) -> None:
    fleet.add("one")
    fleet.url = "memory://fleet"
    summary = fleet.run()
    assert summary.rows[0]["status"] == "refused" and "memory://" in summary.rows[0]["reason"]
    assert fleet.calls("one") == []


def test_a_place_with_strangers(fleet: Fleet) -> None:
    fleet.add("one")
    (fleet.out / "one").mkdir(parents=True)
    (fleet.out / "one" / "thesis.tex").write_text("x")
    for url in (str(fleet.out), f"quota://{fleet.out}"):
        fleet.url = url
        assert "that Trueport did not write" in fleet.run(force=True).rows[0]["reason"]
    assert fleet.calls("one") == [] and (fleet.out / "one" / "thesis.tex").exists()


def test_a_source_that_changes_under_the_worker(fleet: Fleet) -> None:
    fleet.add("one", "change")
    summary = fleet.run()
    assert summary.rows[0]["status"] == "refused" and "not what it was" in summary.rows[0]["reason"]
    assert fleet.artefacts() == []


def test_what_cannot_begin_is_one_sentence(fleet: Fleet, tmp_path: Path) -> None:
    fleet.add("one")
    with pytest.raises(StorageError, match="gopher://"):
        fleet.url = "gopher://x"
        fleet.run()
    with pytest.raises(StorageError, match="cannot be reached"):
        (tmp_path / "file").write_text("")
        fleet.url = str(tmp_path / "file" / "out")
        fleet.run()
    with pytest.raises(StorageError, match=r"file is not a folder. Choose another place"):
        fleet.url = str(tmp_path / "file")
        fleet.run()
    with pytest.raises(TrueportError, match="names no place"):
        fleet.url = ""
        fleet.run()
    with pytest.raises(TrueportError, match=r"lies in the folder of one.*Give --out a place outside"):
        fleet.url = str(tmp_path / "models" / "one" / "exports")
        fleet.run()
    fleet.url = str(fleet.out)
    with pytest.raises(TrueportError, match=r"lies in the folder of one.*Give --state a place outside"):
        fleet.run(state=tmp_path / "models" / "one" / "fleet.fleet")
    with pytest.raises(TrueportError, match="no engine 'slurm'"):
        fleet.run(engine="slurm")
    with pytest.raises(TrueportError, match="no address"):
        fleet.run(address="auto")
    assert fleet.calls("one") == []


def test_what_this_machine_lacks_is_one_sentence(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet.add("one", memory="8GB")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(TrueportError, match=r'pip install "trueport\[ray\]"'):
        fleet.run(engine="ray")
    monkeypatch.setattr(sys.modules["trueport.fleet.run"], "measurable", lambda: False)
    with pytest.raises(TrueportError, match="memory = of one cannot be watched here"):
        fleet.run()
    assert fleet.calls("one") == []
