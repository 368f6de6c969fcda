"""Runs a plan: starts what is not done, tries again what was unlucky, and writes everything down."""

from __future__ import annotations

import heapq
import json
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trueport.errors import StorageError, TrueportError
from trueport.fleet.engines import Engine, open_engine
from trueport.fleet.identity import key_of, source_of, versions_for
from trueport.fleet.job import FAILED, LASTING, REFUSED, RIGHT, STOPPED, STORAGE, TRANSIENT, UNPROVEN, Job, Outcome
from trueport.fleet.journal import Journal, locked, unwritable
from trueport.fleet.memory import measurable
from trueport.fleet.plan import Entry, Plan, read_plan
from trueport.fleet.results import publish_results, replace_text, rows, write_results
from trueport.fleet.storage import Store
from trueport.fleet.watch import WORKER
from trueport.interrupts import held
from trueport.words import count_words

BACKOFF = 2.0
"""Seconds before the second attempt; each later one waits twice as long."""
TURN = 0.2
"""Seconds in which the loop looks up once."""

Told = Callable[[dict[str, Any]], None]


class Stopped(TrueportError):
    """Somebody pressed Ctrl-C (exit code 130)."""

    exit_code = 130


@dataclass(frozen=True)
class Summary:
    """What became of a fleet.

    Attributes:
        rows: one for each entry, in the plan's order, as ``results.jsonl`` has them.
        state: the folder with the journal, the results, the report and the logs.
        notes: what else there is to know, a sentence each.
    """

    rows: list[dict[str, Any]]
    state: Path
    notes: list[str] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 where all are proven, or were not to be; else 1."""
        return 0 if all(row["status"] in RIGHT for row in self.rows) else 1


def run(
    plan: str | Path,
    *,
    out: str | None = None,
    engine: str = "local",
    address: str | None = None,
    jobs: int | None = None,
    state: str | Path | None = None,
    force: bool = False,
    retry_failed: bool = False,
    progress: Told | None = None,
    worker: Sequence[str] = WORKER,
    backoff: float = BACKOFF,
) -> Summary:
    """Export and prove every model of a plan; what an earlier run did is not done again.

    Args:
        plan: the TOML file (plan.py).
        out: where the artefacts go, a folder or a URL that fsspec knows; the plan's when None.
        engine: ``local``, or ``ray``.
        address: of the Ray cluster; None finds the one that runs on this machine.
        jobs: models at once; when None half the processors, or what the cluster holds.
        state: the folder for journal, results, report and logs; beside the plan when None.
        force: replace other exports at the places of this plan's.
        retry_failed: try again also what was not proven.
        progress: told every event of the journal, and ``{"event": "phase", "phase": ...}``.
        worker: what Python is given to start a worker.
        backoff: seconds before a second attempt.

    Raises:
        TrueportError: the plan, the place or the engine cannot be used, or another run is under way.
        Stopped: after Ctrl-C; the same call goes on where it stopped.
    """
    read = read_plan(plan)
    place = out if out is not None else read.out
    if not place:  # an empty --out, of a variable that is not set, would be the current folder
        raise TrueportError(f"{read.path} names no place for the artefacts", 'Give --out, or out = "..." in it.')
    _check_limits(read)
    tell = progress or (lambda event: None)
    folder = Path(state) if state is not None else state_of(Path(plan))
    store = Store(place, read.storage)
    _check_apart(read, store, folder)
    with locked(folder, read.path) as descriptor:
        journal = Journal(folder)
        try:
            opened = open_engine(
                engine, address=address, jobs=jobs, command=worker, descriptors=(descriptor,),
                phase=lambda phase: tell({"event": "phase", "phase": phase}),
            )  # fmt: skip
            fleet = _Fleet(read, store, folder, journal, opened, force, retry_failed, tell, backoff)
            return fleet.run()
        finally:
            journal.close()


def state_of(plan: Path) -> Path:
    """The folder of a plan's state where none is named."""
    return plan.with_name(f"{plan.stem}.fleet")


def _check_limits(plan: Plan) -> None:
    limited = [entry.name for entry in plan.entries if entry.limits.memory is not None]
    if limited and not measurable():
        problem = f"memory = of {limited[0]} cannot be watched here: there is no /proc, and no psutil"
        raise TrueportError(problem, "Install psutil, or leave memory = out.")


def _check_apart(plan: Plan, store: Store, state: Path) -> None:
    """Refuse to write into a model's folder: with every line there it would be another source, exported again."""
    written = {"--state": state, **({"--out": Path(store.root)} if store.renames else {})}
    for entry in plan.entries:
        model = Path(entry.model).resolve()
        for option, place in written.items():
            if model.is_dir() and place.resolve().is_relative_to(model):
                problem = f"{place} lies in the folder of {entry.name}, which must not change during a run"
                raise TrueportError(problem, f"Give {option} a place outside of it.")


class _Fleet:
    """One run of one plan."""

    def __init__(
        self, plan: Plan, store: Store, state: Path, journal: Journal, engine: Engine, force: bool, retry_failed: bool,
        tell: Told, backoff: float,
    ) -> None:  # fmt: skip
        self.plan, self.store, self.state, self.journal, self.engine = plan, store, state, journal, engine
        self.force, self.retry_failed, self.tell, self.backoff = force, retry_failed, tell, backoff
        self.id = uuid.uuid4().hex[:12]
        self.waiting: list[tuple[float, int, Job]] = []
        self.running: set[str] = set()
        self.again = 0

    def run(self) -> Summary:
        stopped = False
        try:
            self._begin()
            for index, entry in enumerate(self.plan.entries):
                job = self._job(entry)
                if self._is_to_do(job):
                    heapq.heappush(self.waiting, (0.0, index, job))
            while self.waiting or self.running:
                self._turn()
        except KeyboardInterrupt:
            stopped = True
        finally:
            with held(too_late=stopped):  # who is impatient presses twice
                self.engine.stop()
                for name in self.running:
                    with suppress(StorageError):  # what cannot be brought to an end now, the next run brings
                        self.store.finish(name)
                gone = self.store.end(self.id)
        self._record("ended", run=self.id, gone=gone)
        summary = self._summary(publish=not stopped)
        if stopped:
            done = sum(row["status"] in LASTING for row in summary.rows)
            words = f"Interrupted: {done} of {count_words(len(summary.rows), 'model')} done"
            raise Stopped(words, "The same command goes on from here.")
        return summary

    def _begin(self) -> None:
        try:
            (self.state / "logs").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(self.state / "logs", error) from error
        ended = {e["run"] for e in self.journal.events if e["event"] == "ended" and e.get("gone", True)}
        for event in self.journal.events:  # runs that were killed left their workshops, others could not remove them
            if event["event"] == "run" and event["out"] == self.store.told and event["run"] not in ended:
                self.store.end(event["run"])
        self._record("run", run=self.id, plan=self.plan.path.name, out=self.store.told)
        self.store.begin(self.id)

    def _turn(self) -> None:
        """Start what can start, and hear what has ended."""
        now = time.monotonic()
        while self.waiting and len(self.running) < self.engine.slots and self.waiting[0][0] <= now:
            _, _, job = heapq.heappop(self.waiting)
            self._record("started", name=job.name, key=job.key, attempt=job.attempt, log=self._log(job).name)
            self.engine.start(job, self._log(job))
            self.running.add(job.name)
        for job, outcome in self.engine.ended(TURN):
            self.running.remove(job.name)
            self._ended(job, outcome)

    def _job(self, entry: Entry) -> Job:
        """The first attempt at an entry."""
        versions = versions_for(str(entry.options.get("to", "onnx")))
        source = source_of(entry.model)
        job = Job(
            name=entry.name, key=key_of(entry, source, versions), attempt=1, run=self.id, model=entry.model,
            options=entry.options, source=source, versions=versions, out=self.store.url, storage=self.plan.storage,
            force=self.force or bool(entry.options.get("force")), seconds=entry.limits.seconds,
            memory=entry.limits.memory, cpus=entry.limits.cpus,
        )  # fmt: skip
        return self._numbered(job, 1)

    def _numbered(self, job: Job, attempt: int) -> Job:
        """An attempt, with a place of its own to work in: one that was lost may still be at work."""
        workshop = self.store.workshop(self.id)
        scratch = None if workshop is None else str(workshop / f"{job.name}.{attempt}")
        return replace(job, attempt=attempt, scratch=scratch)

    def _is_to_do(self, job: Job) -> bool:
        """Whether an entry is neither done nor impossible; what it is, the journal says afterwards."""
        if self._found(job) or self._failed_before(job):
            return False
        try:
            self.store.check(job.name, job.key, force=job.force)
            impossible = self.engine.impossible(job)
        except TrueportError as error:
            impossible = str(error)
        if impossible:
            self._finish(job, {"status": REFUSED, "reason": impossible})
        else:
            self._record("waiting", name=job.name, key=job.key)  # how it ended with other options is no longer the word
        return not impossible

    def _found(self, job: Job) -> bool:
        """Whether the artefact is in place already."""
        outcome = self._outcome_there(job)
        if outcome is None or (outcome["status"] == FAILED and self.retry_failed and job.attempt == 1):
            return False
        known = self._last(job)
        if known is not None and known["status"] in LASTING:
            self._carry(known)
        else:
            self._finish(job, outcome | {"found": True})
        return True

    def _failed_before(self, job: Job) -> bool:
        """Whether the proof failed in an earlier run, which it would do again."""
        known = self._last(job)
        if known is None or known["status"] != FAILED or known.get("size") or self.retry_failed:
            return False
        self._carry(known)
        return True

    def _last(self, job: Job) -> dict[str, Any] | None:
        """How the entry ended last with this key, at this place."""
        wanted = (job.name, job.key, self.store.where(job.name))
        ends = (e for e in reversed(self.journal.events) if e["event"] == "finished")
        return next((e for e in ends if (e["name"], e["key"], e["url"]) == wanted), None)

    def _carry(self, known: dict[str, Any]) -> None:
        """Let an earlier end stand, as the last word on its entry."""
        latest = next(e for e in reversed(self.journal.events) if e.get("name") == known["name"])
        if latest is known:
            self.tell(known | {"carried": True})
        else:
            self._record(**{name: value for name, value in known.items() if name != "time"} | {"carried": True})

    def _outcome_there(self, job: Job) -> Outcome | None:
        """What a worker would tell of the artefact that is in place; None where none is, or nobody can tell.

        One that a worker left half way to its place is brought there first.
        """
        from trueport.proof.report import headline

        try:
            self.store.finish(job.name)
            manifest = self.store.committed(job.name, job.key)
            if manifest is None:
                return None
            verdict = str(manifest["proof"]["verdict"])
            proof = self.store.read(job.name, "proof.json") if verdict != UNPROVEN else None
        except TrueportError:  # what is wrong with the place is told when it is to be written
            return None
        reason = headline(proof) if proof else "Unproven, as the plan says (proof = false)."
        size = sum(entry["size"] for entry in manifest["files"].values())
        return {"status": verdict, "reason": reason, "size": size, "proof": proof}

    def _ended(self, job: Job, outcome: Outcome) -> None:
        if outcome["status"] == STOPPED:
            return
        if "size" in outcome and self._outcome_there(job) is None:
            outcome = outcome | {
                "status": STORAGE,
                "reason": f"{self.store.where(job.name)} was written, and is not there.",
            }
        # It was stopped after its last step; or another plan's worker was first to bring the same to the place.
        if "size" not in outcome and outcome["status"] != FAILED and self._found(job):
            return
        if outcome["status"] in TRANSIENT:
            retries = next(entry.limits.retries for entry in self.plan.entries if entry.name == job.name)
            if job.attempt <= retries:
                self._again(job, outcome)
                return
        self._finish(job, outcome)

    def _again(self, job: Job, outcome: Outcome) -> None:
        wait = self.backoff * 2 ** (job.attempt - 1)
        self._record("retry", name=job.name, key=job.key, attempt=job.attempt, wait=wait, **_told(outcome))
        self.again += 1
        turn = (time.monotonic() + wait, len(self.plan.entries) + self.again)
        heapq.heappush(self.waiting, (*turn, self._numbered(job, job.attempt + 1)))

    def _finish(self, job: Job, outcome: Outcome) -> None:
        proof = outcome.get("proof")
        if proof and outcome["status"] == FAILED:
            text = json.dumps(proof, indent=2, ensure_ascii=False) + "\n"
            replace_text(self.state / "proofs" / f"{job.name}.json", text)
        self._record(
            "finished", name=job.name, key=job.key, attempt=job.attempt, model=job.model, options=dict(job.options),
            url=self.store.where(job.name), **_told(outcome),
        )  # fmt: skip

    def _log(self, job: Job) -> Path:
        return self.state / "logs" / f"{job.name}.{job.attempt}.log"

    def _record(self, event: str, **facts: Any) -> None:
        self.tell(self.journal.write(event, **facts))

    def _summary(self, *, publish: bool = False) -> Summary:
        found, name = rows(self.plan, self.journal.events), self.plan.path.stem
        write_results(self.state, name, found)
        notes = publish_results(self.store, self.state, name, found) if publish else []
        return Summary(found, self.state, notes)


def _told(outcome: Outcome) -> dict[str, Any]:
    """What the journal keeps of an outcome: the clauses of a proof and not its inputs."""
    kept = {name: value for name, value in outcome.items() if name not in ("proof", "log")}
    if proof := outcome.get("proof"):
        kept["clauses"] = [
            {"clause": clause["clause"], "component": clause["component"], "status": clause["status"]}
            for clause in proof["clauses"]
        ]
    return kept
