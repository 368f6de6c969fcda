"""``trueport patches``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from trueport.patches import Patch
    from trueport.roles import Component


def patches(
    model: Annotated[
        str | None,
        typer.Option("--for", help="A hub id, a folder or FILE.py:NAME: those that apply, and what comes without."),
    ] = None,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run Python files of the checkpoint.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """List the patches; with --for those that a model needs, and whether it would export without each."""
    from trueport.patches import needed, registered
    from trueport.patches.patch import modules_of

    if model is None:
        for patch in registered():
            _show(patch)
        return
    from trueport.quiet import quiet

    with quiet():
        source = _source(model, trust_remote_code)
    for patch in needed(modules_of(source.model)):
        _show(patch)
        typer.echo(f"    without it: {without(patch, source)}")


def _source(model: str, trust_remote_code: bool) -> Any:
    """A checkpoint, or a module of the user's own."""
    from trueport.modules import module_source
    from trueport.recipe import opened
    from trueport.source import load_source

    given = opened(model)
    if isinstance(given.model, str):
        return load_source(model, tokenizer=None, trust_remote_code=trust_remote_code)
    return module_source(given.model, inputs=given.inputs, dynamic=given.dynamic, state=given.state)


def _components(source: Any) -> list[Component]:
    from trueport.roles import components

    if source.role == "custom":
        return [source.described.component]
    return components(source.model, untrained=source.untrained)


def _show(patch: Patch) -> None:
    typer.echo(patch.path)
    typer.echo(f"    why: {patch.symptom}")
    typer.echo(f"    upstream: {patch.upstream}")


def without(patch: Patch, source: Any) -> str:
    """What capturing and lowering the model comes to when one patch is left out."""
    from trueport.capture import capture
    from trueport.errors import TrueportError
    from trueport.quiet import quiet
    from trueport.targets.onnx.lower import lower

    try:
        with quiet():
            for component in _components(source):
                lower(capture(component, skip=(patch.path,)))
    except TrueportError as error:
        return f"no export: {error.problem}"
    return "it exports, and the proof would have to tell whether rightly"
