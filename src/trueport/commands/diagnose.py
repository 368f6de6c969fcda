"""``trueport diagnose``."""

from __future__ import annotations

from typing import Annotated

import typer


def diagnose(
    model: Annotated[str, typer.Argument(help="A hub id, a folder, FILE.py:NAME; with --against an export.")],
    against: Annotated[
        str | None, typer.Option("--against", help="The original: name the first operation that diverges from it.")
    ] = None,
    to: Annotated[str, typer.Option("--to", help="onnx, executorch, or both: whose operators to look for.")] = "onnx",
    show_rewrites: Annotated[
        bool, typer.Option("--show-rewrites", help="Show the rewritten control flow as a diff.")
    ] = False,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python files of the checkpoint.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Say which lines, dimensions and operators stand in MODEL's way, or where an export leaves its original."""
    from trueport.diagnosis import Diagnosis
    from trueport.diagnosis import diagnose as run
    from trueport.errors import TrueportError
    from trueport.quiet import quiet

    if against is not None and show_rewrites:
        raise TrueportError("--against and --show-rewrites ask different things", "Give one of them.")
    with quiet():
        found = run(model, against=against, to=to, trust_remote_code=trust_remote_code)
    for line in found.lines():
        typer.echo(line)
    if not isinstance(found, Diagnosis):
        if not found.agrees:
            raise typer.Exit(1)
        return
    if show_rewrites:
        typer.echo(found.diff() or "Nothing is rewritten.")
    if not found.exportable:
        raise typer.Exit(1)
