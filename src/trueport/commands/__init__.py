"""Commands that do not export: each in a module of its own, added to the application by ``register``."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add them to ``app``."""
    from trueport.commands.diagnose import diagnose
    from trueport.commands.fleet import app as fleet
    from trueport.commands.graphs import audit, repair
    from trueport.commands.optimize import optimize
    from trueport.commands.patches import patches

    app.command()(patches)
    app.command()(diagnose)
    app.command()(audit)
    app.command()(repair)
    app.command()(optimize)
    app.add_typer(fleet)
