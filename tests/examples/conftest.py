"""The programs of the target's own tests serve these too: each is exported once for a run."""

from __future__ import annotations

from tests.targets.executorch.conftest import program

__all__ = ["program"]
