"""What a patch is."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Any

from trueport.errors import CaptureError


def modules_of(model: Any) -> set[str]:
    """The Python modules that a model's submodules come from."""
    return {type(module).__module__ for module in model.modules()}


@dataclass(frozen=True)
class Patch:
    """One replacement.

    Args:
        path: dotted path of what is replaced, such as ``package.module.Class.method``.
        symptom: what goes wrong without it.
        upstream: the issue or the source line upstream.
        replacement: takes the original and returns what stands in its place.
        samples: returns argument tuples on which original and replacement must agree; the suite runs them.
        needed_by: a module path prefix: the patch applies to models with a module from there; empty applies to all.
        versions: of the patched package, those that need it, as in ``>=5.23,<6``; empty means all.
        model: a model that does not come out right without it, by its name in ``tests/zoo.py``; the suite tries.
    """

    path: str
    symptom: str
    upstream: str
    replacement: Callable[[Any], Any]
    samples: Callable[[], list[tuple[Any, ...]]]
    needed_by: str = ""
    versions: str = ""
    model: str = ""

    @property
    def kind(self) -> str:
        """The package that is patched: ``torch``, ``transformers``, or a package of the user's."""
        return self.path.partition(".")[0]

    def confined(self, original: Any, thread: int) -> Any:
        """What stands at the path: the replacement for calls from ``thread``, the original for all others.

        A static or class method stays one.
        """
        if isinstance(original, (staticmethod, classmethod)):
            return type(original)(self.confined(original.__func__, thread))
        replacement = self.replacement(original)
        if not callable(original) or isinstance(original, type):
            return replacement

        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            own = threading.get_ident() == thread
            return (replacement if own else original)(*args, **kwargs)

        return call

    def resolve(self) -> tuple[Any, str, Any]:
        """The owner, the attribute's name, and its value today.

        Raises:
            CaptureError: the path no longer leads anywhere; the message names the version at hand.
        """
        parts = self.path.split(".")
        for split in range(len(parts) - 1, 0, -1):
            try:
                owner: Any = import_module(".".join(parts[:split]))
            except ImportError:
                continue
            try:
                for part in parts[split:-1]:
                    owner = getattr(owner, part)
                return owner, parts[-1], owner.__dict__[parts[-1]]
            except (AttributeError, KeyError):
                break
        package = parts[0]
        version = getattr(import_module(package), "__version__", "unknown")
        raise CaptureError(
            f"The patch for {self.path} finds nothing there in {package} {version}",
            "Pin the version that the lock of this release names, or report it.",
        )

    @property
    def is_there(self) -> bool:
        """Whether the path leads anywhere in the installed versions."""
        try:
            self.resolve()
        except CaptureError:
            return False
        return True

    def applies_to(self, modules: set[str]) -> bool:
        """Whether a model whose submodules come from these Python modules needs it, in the installed versions."""
        if self.needed_by and not any(name.startswith(self.needed_by) for name in modules):
            return False
        if not self.versions:
            return True
        from packaging.specifiers import SpecifierSet

        return SpecifierSet(self.versions).contains(metadata.version(self.kind), prereleases=True)
