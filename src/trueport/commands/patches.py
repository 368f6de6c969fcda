"""``trueport patches``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from trueport.patches import Patch
    from trueport.source import Source


def patches(
    model: Annotated[
        str | None, typer.Option("--for", help="A hub id or a folder: those that apply, and what happens without.")
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python files of the checkpoint.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the patches; with --for those that a model needs, and whether it would export without each."""
    from trueport.patches import registered

    if model is None:
        for patch in registered():
            _show(patch)
        return
    from trueport.quiet import quiet
    from trueport.source import load_source

    with quiet():
        source = load_source(model, tokenizer=None, trust_remote_code=trust_remote_code)
    modules = {type(module).__module__ for module in source.model.modules()}
    for patch in (patch for patch in registered() if patch.applies_to(modules)):
        _show(patch)
        typer.echo(f"    without it: {without(patch, source)}")


def _show(patch: Patch) -> None:
    typer.echo(patch.path)
    typer.echo(f"    why: {patch.symptom}")
    typer.echo(f"    upstream: {patch.upstream}")


def without(patch: Patch, source: Source) -> str:
    """What capturing and lowering the model comes to when one patch is left out."""
    from trueport.capture import capture
    from trueport.errors import TrueportError
    from trueport.quiet import quiet
    from trueport.roles import components
    from trueport.targets.onnx.lower import lower

    try:
        with quiet():
            for component in components(source.model, untrained=source.untrained):
                lower(capture(component, skip=(patch.path,)))
    except TrueportError as error:
        return f"no export: {error.problem}"
    return "it exports, and the proof would have to tell whether rightly"
