"""Fleets of models that take milliseconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.fleet.quota import QuotaFileSystem
from trueport.fleet import Summary, run
from trueport.fleet.journal import read_journal

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
WORKER = (str(HERE / "fake_worker.py"),)


class Fleet:
    """A plan with its models, below one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.plan, self.out = folder, folder / "fleet.toml", folder / "out"
        self.state = folder / "fleet.fleet"
        self.plan.write_text("")
        self.url = str(self.out)

    def add(self, model: str, do: str = "fine", *, times: int = 1000, size: int = 1000, **keys: Any) -> None:
        """One more entry, whose model behaves so."""
        place = self.folder / "models" / model
        place.mkdir(parents=True)
        (place / "behave.json").write_text(json.dumps({"do": do, "times": times, "size": size}))
        lines = [f"{key} = {json.dumps(value)}" for key, value in {"model": f"models/{model}", **keys}.items()]
        self.plan.write_text(self.plan.read_text() + "\n".join(["[[model]]", *lines, "", ""]))

    def quota(self, size: int) -> None:
        """Go to a store without renames that holds so many bytes."""
        self.url = f"quota://{self.out}"
        self.out.mkdir(exist_ok=True)
        (self.out / ".quota").write_text(str(size))

    def run(self, **options: Any) -> Summary:
        """In this process."""
        return run(self.plan, out=self.url, worker=WORKER, backoff=0.01, **options)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """``trueport fleet run``, in a process of its own."""
        command = [sys.executable, str(HERE / "driver.py"), "fleet", "run", str(self.plan), "--out", self.url, *words]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)

    def calls(self, name: str) -> list[int]:
        """The process of every export of a model so far."""
        path = self.folder / "calls" / name
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    def until_called(self, *names: str) -> None:
        until(lambda: all(self.calls(name) for name in names))

    def statuses(self) -> dict[str, str]:
        """What ``results.jsonl`` says."""
        lines = (self.state / "results.jsonl").read_text().splitlines()
        return {row["name"]: row["status"] for row in map(json.loads, lines)}

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [event for event in read_journal(self.state) if event["event"] == kind]

    def artefacts(self) -> list[str]:
        """The folders with a manifest, and whatever else does not belong there."""
        return sorted(path.name for path in self.out.iterdir() if path.is_dir() or path.name.startswith(".trueport"))


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something that is bound to happen."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet has."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


@pytest.fixture(autouse=True)
def _stores(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """``quota://`` here, and as an installed package would bring it, in every worker."""
    place = tmp_path_factory.getbasetemp() / "quota_store"
    package = place / "quota_store-1.dist-info"
    package.mkdir(parents=True, exist_ok=True)
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: quota-store\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[fsspec.specs]\nquota = tests.fleet.quota:QuotaFileSystem\n")
    known = os.environ.get("PYTHONPATH", "")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(place), str(ROOT), known])))
    fsspec.register_implementation("quota", QuotaFileSystem, clobber=True)
    yield
