"""A module of the user's own, named on the command line: ``FILE.py:NAME``.

NAME is a function without arguments, or a class, in that file. It gives the module; or a dict with ``model``, and with
``inputs``, ``dynamic`` and ``state`` where they are needed, as ``trueport.export`` takes them.
"""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from trueport.errors import SourceError

DEFAULT = "recipe"
"""NAME where only the file is given."""
KEYS = ("model", "inputs", "dynamic", "state")
MARK = "__trueport_recipe__"
"""What a file that was read here carries: it may be read again, and another of its name in its place."""
FORM = 'a module, or a dict such as {"model": module, "inputs": (x,)}'


@dataclass(frozen=True)
class Recipe:
    """What an export of a module is given, as ``trueport.export`` takes it."""

    model: Any
    inputs: Any = None
    dynamic: Mapping[str, Any] | None = None
    state: Mapping[Any, str] | None = None

    def __post_init__(self) -> None:
        """A tensor alone is the only input, not a tuple of its rows."""
        if self.inputs is not None:
            from torch import Tensor

            if isinstance(self.inputs, Tensor):
                object.__setattr__(self, "inputs", (self.inputs,))


def opened(model: Any, inputs: Any = None, dynamic: Any = None, state: Any = None) -> Recipe:
    """``model`` and what belongs to it: read from a file where it names one, else as given.

    Raises:
        SourceError: there is no such file or name, it raises, or it gives something else.
    """
    given = Recipe(model, inputs, dynamic, state)
    file, name = place(model)
    if file is None:
        return given
    recipe = _read(file, name)
    if any(entry is not None for entry in (inputs, dynamic, state)):
        raise SourceError(
            f"{file.name}:{name} gives the inputs itself, and inputs, dynamic or state were given too",
            "Give them in one place.",
        )
    return recipe


def place(model: Any) -> tuple[Path | None, str]:
    """The file and the name in it that ``model`` says; no file where it is anything else."""
    if not isinstance(model, str | Path):
        return None, ""
    file, colon, name = str(model).rpartition(":")
    if not colon or not file.endswith(".py"):
        file, name = str(model), DEFAULT
    return (Path(file), name) if file.endswith(".py") and not Path(file).is_dir() else (None, "")


def _read(file: Path, name: str) -> Recipe:
    with _beside(file):
        return _made(_imported(file), file, name)


@contextmanager
def _beside(file: Path) -> Iterator[None]:
    """What lies beside the file can be imported, as when Python runs it."""
    folder = str(file.absolute().parent)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _made(module: ModuleType, file: Path, name: str) -> Recipe:
    made = getattr(module, name, None)
    if made is None:
        here = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        known = f"It defines {', '.join(here[:8])}." if here else "It defines nothing."
        raise SourceError(f"{file} has no {name}", f"{known} Give FILE.py:NAME, a function that returns {FORM}.")
    try:
        made = made() if callable(made) and not _is_module(made) else made
    except (Exception, SystemExit) as error:
        raise _failed(f"{name} in {file}", file, error) from error
    if _is_module(made):
        return Recipe(made)
    if not isinstance(made, Mapping) or not _is_module(made.get("model")):
        raise SourceError(f"{name} in {file} gives a {type(made).__name__}", f"Let it return {FORM}.")
    unknown = sorted(set(map(str, made)) - set(KEYS))
    if unknown:
        raise SourceError(f"{name} in {file} gives {', '.join(unknown)} too", f"It may give {', '.join(KEYS)}.")
    return Recipe(**made)


def _is_module(made: Any) -> bool:
    from torch import nn

    return isinstance(made, nn.Module)


def _imported(file: Path) -> ModuleType:
    """The file as a module."""
    if not file.is_file():
        raise SourceError(f"There is no file {file}", "Give FILE.py:NAME.")
    # Under its own name, and known by it: source is found, and classes can be copied.
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    if not getattr(sys.modules.get(file.stem, module), MARK, file.stem not in sys.modules):
        raise SourceError(f"{file.name} has the name of a module that is imported, {file.stem}", "Rename the file.")
    sys.modules[file.stem] = module
    setattr(module, MARK, True)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        sys.modules.pop(file.stem, None)
        raise _failed(str(file), file, error) from error
    return module


def _failed(what: str, file: Path, error: BaseException) -> SourceError:
    """The error with its line in the user's file."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if Path(frame.filename).absolute() == file.absolute()]
    if isinstance(error, SyntaxError):
        lines = [error.lineno]
    where = f" at line {lines[-1]}" if lines else ""
    reason = " ".join(str(error).split())[:300]
    return SourceError(f"{what} raises {type(error).__name__}{where}: {reason}", "Run it by itself with Python.")
