"""``trueport diagnose``."""

from __future__ import annotations

from typing import Annotated

import typer


def diagnose(
    model: Annotated[str, typer.Argument(help="A hub id or a folder.")],
    show_rewrites: Annotated[
        bool, typer.Option("--show-rewrites", help="Show the rewritten control flow as a diff.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python files of the checkpoint.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say, without exporting MODEL, which lines and dimensions stand in the way, and which patches apply."""
    from trueport.diagnosis import diagnose as run
    from trueport.quiet import quiet

    with quiet():
        found = run(model, trust_remote_code=trust_remote_code)
    for line in found.lines():
        typer.echo(line)
    if show_rewrites:
        typer.echo(found.diff() or "Nothing is rewritten.")
    if not found.exportable:
        raise typer.Exit(1)
