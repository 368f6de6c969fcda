"""Regular expressions that transformers makes of every tensor's name while it loads a model, and hardly ever matches."""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from functools import cached_property
from types import ModuleType, SimpleNamespace
from typing import Any

from trueport.patches.context import applied_where_there
from trueport.patches.patch import Patch


class LatePattern:
    """What ``re.compile`` gives, compiled when it is first used."""

    def __init__(self, *asked: Any) -> None:
        self.asked = asked

    @cached_property
    def compiled(self) -> re.Pattern[str]:
        """The pattern itself."""
        return re.compile(*self.asked)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.compiled, name)


def _late(module: ModuleType) -> SimpleNamespace:
    return SimpleNamespace(**{**vars(module), "compile": LatePattern})


LATE = Patch(
    "transformers.core_model_loading.re",
    "a regular expression is compiled for each tensor of the checkpoint: a third of what it takes to load without weights",
    "WeightTransform.__init__ in transformers 5.23",
    _late,
    lambda: [],
)


def late_patterns() -> AbstractContextManager[None]:
    """Within, transformers compiles a pattern when it first matches something."""
    return applied_where_there([LATE])
