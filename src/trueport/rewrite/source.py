"""Functions, their source, and putting other code into them: the function object stays, only its code is exchanged."""

from __future__ import annotations

import ast
import difflib
import gc
import inspect
import linecache
import re
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FunctionType

import libcst as cst

from trueport.errors import RewriteError

LINES: dict[str, tuple[str, list[int]]] = {}
"""By the file name of a rewritten function: the original's file, and for each line the original's nearest."""


@dataclass(frozen=True)
class Source:
    """The source of a function's code: its text without the common indentation, and the file's first line of it."""

    code: CodeType
    text: str
    first_line: int
    indentation: int


def source_of(code: CodeType) -> Source:
    """The source of ``code``.

    Raises:
        RewriteError: there is none: a lambda, or code made by ``exec``.
    """
    place = f"{code.co_filename}:{code.co_firstlineno}"
    if code.co_name == "<lambda>":
        raise RewriteError(f"{place}: a lambda reads a tensor's value", "Make it a function with `def`.")
    try:
        lines, first = inspect.getsourcelines(code)
    except (OSError, TypeError) as error:
        raise RewriteError(
            f"{place}: {code.co_name} reads a tensor's value and its source cannot be read",
            "Define it in a file, or write the branch with torch.cond.",
        ) from error
    text = "".join(lines)
    return Source(code, textwrap.dedent(text), first, len(lines[0]) - len(lines[0].lstrip()))


def functions_of(code: CodeType) -> list[FunctionType]:
    """Every function object that runs ``code``."""
    return [found for found in gc.get_referrers(code) if type(found) is FunctionType and found.__code__ is code]


def makers_of(code: CodeType) -> list[FunctionType]:
    """Every function that makes functions of ``code`` when it runs."""
    if "<locals>" not in code.co_qualname:
        return []
    functions = (found for found in gc.get_objects() if type(found) is FunctionType)  # isinstance runs code of theirs
    return [found for found in functions if any(part is code for part in found.__code__.co_consts)]


def compiled(source: Source, function: cst.FunctionDef) -> CodeType:
    """The code of ``function`` with the free variables of the original, ready to take its place."""
    code = source.code
    text = cst.Module([function.with_changes(decorators=[], leading_lines=[], lines_after_decorators=[])]).code
    text = _mangled(text, code)
    factory = (
        f"def _factory({', '.join(code.co_freevars)}):\n{textwrap.indent(text, '    ')}\n    return {code.co_name}\n"
    )
    # Under this file name tracebacks find the new text.
    name = f"{code.co_filename} ({code.co_name}, line {code.co_firstlineno}, rewritten)"
    linecache.cache[name] = (len(factory), None, factory.splitlines(keepends=True), name)
    LINES[name] = (code.co_filename, _lines(source, factory))
    module = compile(factory, name, "exec", dont_inherit=True, flags=_future(code))
    outer = next(part for part in module.co_consts if isinstance(part, CodeType))
    new = next(part for part in outer.co_consts if isinstance(part, CodeType) and part.co_name == code.co_name)
    if new.co_freevars != code.co_freevars:
        raise RewriteError(
            f"{code.co_filename}:{code.co_firstlineno}: {code.co_name} reads variables of the function around it "
            "in a way that cannot be kept",
            "Pass them as arguments.",
        )
    return new.replace(co_qualname=code.co_qualname)


def _lines(source: Source, text: str) -> list[int]:
    """For each line of the rewritten text the line of the file that it is, or comes after."""
    old, new = ([line.strip() for line in part.splitlines()] for part in (source.text, text))
    lines, last = [], 0
    matches = difflib.SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
    known = {block.b + place: block.a + place for block in matches for place in range(block.size)}
    for place in range(len(new)):
        last = known.get(place, last)
        lines.append(source.first_line + last)
    return lines


def original_place(file: str, line: int) -> tuple[str, int]:
    """The user's own file and line for those of a traceback, which may be a rewritten function's."""
    if file not in LINES:
        return file, line
    own, lines = LINES[file]
    return own, lines[min(line, len(lines)) - 1]


def _future(code: CodeType) -> int:
    import __future__

    return code.co_flags & __future__.annotations.compiler_flag


def _mangled(text: str, code: CodeType) -> str:
    """Private names ``__x`` as the class of the method spells them."""
    parts = code.co_qualname.split(".")
    if len(parts) < 2 or parts[-2] == "<locals>":
        return text
    owner = parts[-2].lstrip("_")
    private = {
        name
        for node in ast.walk(ast.parse(text))
        for name in (getattr(node, "attr", ""), getattr(node, "id", ""))
        if name.startswith("__") and not name.endswith("__")
    }
    for name in private:
        text = re.sub(rf"\b{name}\b", f"_{owner}{name}", text)
    return text


@contextmanager
def exchanged(
    functions: list[FunctionType], makers: list[FunctionType], old: CodeType, new: CodeType
) -> Iterator[None]:
    """``functions``, and those that ``makers`` make, run ``new`` inside; afterwards each has the code that it had."""
    before = [(function, function.__code__) for function in (*functions, *makers)]
    try:
        for function in functions:
            function.__code__ = new
        for maker in makers:
            constants = (new if part is old else part for part in maker.__code__.co_consts)
            maker.__code__ = maker.__code__.replace(co_consts=tuple(constants))
        yield
    finally:
        for function, code in before:
            function.__code__ = code
