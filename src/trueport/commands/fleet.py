"""``trueport fleet``: export and prove many models from one plan (docs/fleet.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from trueport.commands.graphs import Debug

PlanFile = Annotated[Path, typer.Argument(help="The plan, a TOML file.")]
State = Annotated[
    Path | None,
    typer.Option("--state", help="Where journal, results, report and logs are; beside the plan by default."),
]

app = typer.Typer(name="fleet", help="Export and prove many models from one plan.", no_args_is_help=True)


@app.command()
def run(
    plan: PlanFile,
    out: Annotated[str | None, typer.Option("--out", help="A folder, or any URL that fsspec knows.")] = None,
    engine: Annotated[str, typer.Option("--engine", help="local (default) or ray.")] = "local",
    address: Annotated[
        str | None, typer.Option("--address", help="Of the Ray cluster; the one here by default.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option("--jobs", min=1, help="Models at once (half the processors; with ray, what it holds).")
    ] = None,
    state: State = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace earlier exports of other options or sources.")
    ] = False,
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Try again also what was not proven.")] = False,
    debug: Debug = False,
) -> None:
    """Export and prove every model of PLAN; what an earlier run did is not done again."""
    from trueport.fleet import run as run_plan
    from trueport.fleet.results import headline

    with _Lines() as tell:
        summary = run_plan(
            plan, out=out, engine=engine, address=address, jobs=jobs, state=state, force=force,
            retry_failed=retry_failed, progress=tell,
        )  # fmt: skip
    typer.echo(headline(summary.rows))
    for note in summary.notes:
        typer.echo(f"trueport: {note}", err=True)
    typer.echo(f"The report: {summary.state / 'report.html'}")
    raise typer.Exit(summary.exit_code)


@app.command()
def status(plan: PlanFile, state: State = None, debug: Debug = False) -> None:
    """Say of every model of PLAN what became of it, also while a run goes on; exit code 1 where one is not right."""
    from trueport.fleet.job import RIGHT
    from trueport.fleet.results import headline, words

    found = _rows(plan, state)
    for row in found:
        typer.echo(words(row))
    typer.echo(headline(found))
    if any(row["status"] not in RIGHT for row in found):
        raise typer.Exit(1)


@app.command()
def report(
    plan: PlanFile,
    to: Annotated[Path, typer.Option("-o", "--out", help="The page to write.")],
    state: State = None,
    debug: Debug = False,
) -> None:
    """Write the report on PLAN as it stands."""
    from trueport.errors import TrueportError
    from trueport.fleet.results import html, replace_text

    if to.is_dir() or to.resolve() == plan.resolve():
        raise TrueportError(f"{to} is {'a folder' if to.is_dir() else 'the plan itself'}", "Give another place.")
    replace_text(to, html(plan.stem, _rows(plan, state)))
    typer.echo(f"The report: {to}")


def _rows(plan: Path, state: Path | None) -> list[dict[str, Any]]:
    from trueport.errors import TrueportError
    from trueport.fleet.journal import is_locked, read_journal
    from trueport.fleet.plan import read_plan
    from trueport.fleet.results import rows
    from trueport.fleet.run import state_of

    folder = state if state is not None else state_of(plan)
    read, events = read_plan(plan), read_journal(folder)
    if not events:
        raise TrueportError(f"{folder} holds no journal", f"Run: trueport fleet run {plan}.")
    return rows(read, events, going_on=is_locked(folder))


class _Lines:
    """Events as lines on stdout; on a terminal, besides, what is being done on stderr."""

    def __enter__(self) -> Any:
        import sys

        from rich.console import Console

        console = Console(file=sys.stderr)
        self.status = console.status("start") if console.is_terminal else None
        if self.status is not None:
            self.status.start()
        return self.tell

    def __exit__(self, *error: object) -> None:
        if self.status is not None:
            self.status.stop()

    def tell(self, event: dict[str, Any]) -> None:
        from trueport.fleet.results import words
        from trueport.words import clean

        event = clean(event)
        if event["event"] == "phase" and self.status is not None:
            from rich.markup import escape

            self.status.update(escape(event["phase"]))
        elif event["event"] == "retry":
            typer.echo(f"{words(event)}; again in {event['wait']:g} s")
        elif event["event"] == "finished":
            typer.echo(words(event) + (" (done before)" if event.get("carried") else ""))
