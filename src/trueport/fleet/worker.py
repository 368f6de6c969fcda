"""``python -m trueport.fleet.worker``: one job on stdin, one result on stdout; nothing else lives in its process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from trueport.errors import ProofError, StorageError, TrueportError
from trueport.fleet import keywords
from trueport.fleet.files import no_space
from trueport.fleet.identity import source_of, versions_for
from trueport.fleet.job import CRASHED, ERROR, FAILED, MEMORY, REFUSED, STORAGE, Job, Outcome
from trueport.fleet.storage import Store
from trueport.fleet.watch import message

Export = Callable[..., Any]
MEEK = 500
"""Added to the kernel's reasons to end this process, and not the one that watches it, when the machine has no memory."""


def main(export: Export | None = None) -> None:
    """Do the job on stdin with ``trueport.export``, or what stands for it."""
    channel = _channel()
    job = Job.from_json(json.loads(sys.stdin.buffer.readline()))
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(MEEK))

    def tell(content: dict[str, Any]) -> None:
        os.write(channel, message(content))

    result = attempt(job, export or _export, lambda phase: tell({"phase": phase}))
    with os.fdopen(channel, "wb") as stream:
        stream.write(message(result))


def attempt(job: Job, export: Export, phase: Callable[[str], None]) -> Outcome:
    """What becomes of a job; every exception is an outcome."""
    try:
        return _do(job, export, phase)
    except StorageError as error:
        return {"status": STORAGE, "reason": str(error)}
    except TrueportError as error:
        return {"status": STORAGE if no_space(error) else REFUSED, "reason": str(error)}
    except MemoryError:
        return {"status": MEMORY, "reason": "the system gave no more memory. Use a machine with more."}
    except Exception as error:
        with suppress(OSError):  # the disk under the log may be full too
            traceback.print_exc()
        reason = " ".join(str(error).split())[:500]
        status = STORAGE if no_space(error) else ERROR
        return {"status": status, "reason": f"{type(error).__name__}: {reason}. The log has the traceback."}


def _do(job: Job, export: Export, phase: Callable[[str], None]) -> Outcome:
    phase("check")
    store = Store(job.out, job.storage)
    _check_place(job, store)
    store.check(job.name, job.key, force=job.force)
    _check_source(job)
    assert job.scratch is not None
    folder = Path(job.scratch, "artifact")
    options = keywords.for_export({key: value for key, value in job.options.items() if key != "force"})
    try:
        artifact = export(job.model, folder, **options, progress=phase)
        proof = artifact.proof
    except ProofError as error:
        proof = getattr(error, "proof", None)
        proof = None if proof is None else proof.to_json()
        artifact = getattr(error, "artifact", None)
        if artifact is None:
            return {"status": FAILED, "reason": _headline(proof) or str(error), "proof": proof}
    _check_source(job)
    phase("publish")
    size = store.publish(folder, job.name, job.key, force=job.force, run=job.run, attempt=job.attempt)
    reason = _headline(proof) or "Unproven, as the plan says (proof = false)."
    return {"status": artifact.verdict, "reason": reason, "size": size, "proof": proof}


def _check_place(job: Job, store: Store) -> None:
    """Refuse to work where nobody would find what is written."""
    if not store.sees(job.run):
        raise TrueportError(
            f"The worker does not see {store.told} as the fleet's command does",
            "Give a place that every worker shares: not memory://, and on a cluster no disk of one machine.",
        )


def _check_source(job: Job) -> None:
    """Refuse what the key was not made for."""
    here = versions_for(str(job.options.get("to", "onnx")))
    if other := [name for name, version in job.versions.items() if here.get(name) != version]:
        name = other[0]
        problem = f"The worker has {name} {here.get(name)}, the fleet's command {job.versions[name]}"
        raise TrueportError(problem, "Install the same versions everywhere.")
    if json.loads(json.dumps(source_of(job.model))) != job.source:
        raise TrueportError(
            f"{job.model} is not what it was when the run began, or not the same on this machine",
            "Let nothing change it during a run, and share it with every worker.",
        )


def _headline(proof: dict[str, Any] | None) -> str:
    from trueport.proof.report import headline

    return "" if proof is None else headline(proof)


def _export(*args: Any, **options: Any) -> Any:
    import trueport

    return trueport.export(*args, **options)


def _channel() -> int:
    """Where results go: the stdout that was given, which from now on nobody else prints to."""
    channel = os.dup(1)
    os.dup2(2, 1)
    return channel


def _end_with_parent() -> None:
    """When whoever started this is gone, stdin ends, and so does the whole group."""
    while os.read(0, 4096):
        pass
    print(f"{CRASHED}: whoever started this worker is gone", file=sys.stderr, flush=True)
    if os.getpgid(0) == os.getpid():  # else somebody started it by hand, within a group of theirs
        os.killpg(0, signal.SIGKILL)
    os._exit(1)


if __name__ == "__main__":
    main()
