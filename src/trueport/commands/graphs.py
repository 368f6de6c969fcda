"""``trueport audit`` and ``trueport repair``: commands that work on any ONNX graph."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from trueport.commands.terminal import write_report
from trueport.errors import TrueportError

Graph = Annotated[Path, typer.Argument(help="An ONNX file, whoever wrote it.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
STDOUT = Path("-")


def audit(
    graph: Graph,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the report to this file too; - for the terminal instead.")
    ] = None,
    sarif_file: Annotated[
        Path | None, typer.Option("--sarif", help="The same as SARIF 2.1.0, for code hosts and editors.")
    ] = None,
    debug: Debug = False,
) -> None:
    """Find what is wrong with the masks of GRAPH, without its model; exit code 1 where something is."""
    from trueport.graphs.audit import audit as find
    from trueport.graphs.audit.rules import RULES
    from trueport.graphs.links import files, spare

    if json_file is not None and sarif_file is not None and json_file.resolve() == sarif_file.resolve():
        raise TrueportError(f"--json and --sarif are both to be {json_file}", "Give two places.")
    graph = _openable(graph)
    report = find(graph)
    spare(_reports(json_file, sarif_file), files(graph))
    forms = [(json_file, report.to_json()), (sarif_file, report.to_sarif(RULES))]
    for place, content in forms:
        if place is not None:
            _write(place, content)
    if STDOUT not in (json_file, sarif_file):
        typer.echo(report.text())
    if report.errors:
        raise typer.Exit(1)


def repair(
    graph: Graph,
    out: Annotated[Path, typer.Option("-o", "--out", help="Where the mended graph goes.")],
    rows: Annotated[
        str, typer.Option("--rows", help="What a query that sees no key gives: uniform (default) or zeros.")
    ] = "uniform",
    precision: Annotated[
        str, typer.Option("--precision", help="Of scores: auto (default, by the weights), float32 or float64.")
    ] = "auto",
    proof: Annotated[bool, typer.Option("--proof/--no-proof", help="Whether to prove the repair.")] = True,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write what was done to this file too; - for the terminal instead.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace the file at the place.")] = False,
    debug: Debug = False,
) -> None:
    """Mend the masks of GRAPH and prove it; exit code 1 where errors are left."""
    from trueport.graphs.links import files, spare
    from trueport.graphs.repair import repair as mend
    from trueport.graphs.repair.run import places

    graph = _openable(graph)
    spare(_reports(json_file), [*files(graph), *places(out)])
    done = mend(graph, out, rows=rows, precision=precision, proof=proof, force=force)
    if json_file is not None:
        _write(json_file, done.to_json())
    if json_file != STDOUT:
        typer.echo(done.text())
    if done.after is not None and done.after.errors:
        raise typer.Exit(1)


def _reports(*places: Path | None) -> list[Path]:
    """The files that reports go to."""
    return [place for place in places if place is not None and place != STDOUT]


def _openable(graph: Path) -> Path:
    """The graph itself; of a folder with one graph, that."""
    if not graph.is_dir():
        return graph
    found = sorted({*graph.glob("*.onnx"), *graph.glob("onnx/*.onnx")})
    if len(found) == 1:
        return found[0]
    names = ", ".join(path.relative_to(graph).as_posix() for path in found[:4]) or "none"
    raise TrueportError(f"{graph} is a folder with {len(found)} graphs ({names})", "Give the .onnx file itself.")


def _write(place: Path, content: dict[str, Any]) -> None:
    if place == STDOUT:
        typer.echo(json.dumps(content, indent=2, ensure_ascii=False))
        return
    write_report(place, content)
