"""``trueport optimize``: fuse an export's graphs, and prove them anew."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from trueport.commands.graphs import Debug


def optimize(
    folder: Annotated[Path, typer.Argument(help="A folder that `trueport export` wrote.")],
    provider: Annotated[str, typer.Option("--provider", help="The execution provider: cpu.")] = "cpu",
    caches: Annotated[
        str, typer.Option("--caches", help="copied (default; any client), or in-place (docs/optimize.md).")
    ] = "copied",
    against: Annotated[str | None, typer.Option("--against", help="The original: as for export.")] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python files of the original's checkpoint.")
    ] = False,
    seed: Annotated[int | None, typer.Option("--seed", help="Seed of the proof's inputs.")] = None,
    debug: Debug = False,
) -> None:
    """Fuse the graphs of FOLDER into the runtime's own operators, as far as its proof still holds."""
    from trueport.commands.terminal import progress, show
    from trueport.optimization import optimize as fuse

    with progress() as tell:
        done = fuse(
            folder, provider=provider, caches=caches, against=against, trust_remote_code=trust_remote_code, seed=seed,
            progress=tell,
        )  # fmt: skip
    show(None if done.proof is None else done.proof.to_json())
    typer.echo(done.text())
