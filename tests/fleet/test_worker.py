"""A worker refuses what its job was not made for, before it exports."""

from __future__ import annotations

import errno
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trueport.errors import ArtifactError
from trueport.fleet import memory
from trueport.fleet.identity import source_of, versions_for
from trueport.fleet.job import Job
from trueport.fleet.memory import memory_of
from trueport.fleet.storage import Store
from trueport.fleet.worker import attempt


@pytest.fixture
def job(tmp_path: Path) -> Job:
    (tmp_path / "model").mkdir()
    model, out = str(tmp_path / "model"), str(tmp_path / "out")
    Store(out).begin("run")
    return Job(
        name="one", key="k", attempt=1, run="run", model=model, options={}, source=source_of(model),
        versions=versions_for("onnx"), out=out, scratch=str(tmp_path / "scratch"),
    )  # fmt: skip


def _never(*args: Any, **options: Any) -> Any:
    raise AssertionError("it exported")


def _outcome(job: Job, export: Any = _never) -> tuple[str, str]:
    outcome = attempt(job, export, lambda phase: None)
    return outcome["status"], outcome["reason"]


def test_other_versions(job: Job) -> None:
    status, reason = _outcome(replace(job, versions=job.versions | {"torch": "1.0"}))
    assert status == "refused" and "torch" in reason and "1.0" in reason and "same versions" in reason


def test_another_source(job: Job) -> None:
    (Path(job.model) / "config.json").write_text("{}")
    status, reason = _outcome(job)
    assert status == "refused" and "not the same on this machine" in reason


def test_a_run_that_it_does_not_see(job: Job) -> None:
    status, reason = _outcome(replace(job, run="another"))
    assert status == "refused" and "does not see" in reason


def test_every_exception_is_an_outcome(job: Job) -> None:
    def raises(error: BaseException) -> Any:
        def export(*args: Any, **options: Any) -> Any:
            raise error

        return export

    full = ArtifactError("No space left for x", "Free space.")
    full.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    for error, wanted in (
        (full, "storage"),
        (OSError(errno.EDQUOT, "Quota"), "storage"),
        (ArtifactError("x is odd", "Mend it."), "refused"),
        (MemoryError(), "out of memory"),
        (KeyError("x"), "error"),
    ):
        assert _outcome(job, raises(error))[0] == wanted, error


def test_memory_of_a_process_counts_its_children() -> None:
    code = "import subprocess, sys; held = b'x' * 30_000_000; print('r', flush=True); sys.stdin.read()"
    outer = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {code!r}])"
    with subprocess.Popen([sys.executable, "-c", outer], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        held = memory_of(process.pid)
        assert held is not None and 30e6 < held < 200e6
        process.stdin.close()
    assert memory_of(process.pid) == 0


def test_memory_that_is_swapped_out_is_held_too(monkeypatch: pytest.MonkeyPatch) -> None:
    status = "VmRSS:\t30 kB\nRssAnon:\t10 kB\nRssFile:\t20 kB\nRssShmem:\t3 kB\nVmSwap:\t500 kB\n"
    monkeypatch.setattr(memory, "open", lambda path, **how: io.StringIO(status), raising=False)
    assert memory._own(1) == (10 + 3 + 500) * 1024
