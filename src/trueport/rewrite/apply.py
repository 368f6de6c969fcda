"""The functions of a model that read tensor values: found, rewritten, put in place, and put back."""

from __future__ import annotations

import difflib
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any

from trueport.errors import CaptureError, RewriteError

if TYPE_CHECKING:
    from torch import nn

    from trueport.patches.context import Report
    from trueport.rewrite.watch import Read


@dataclass(frozen=True)
class Rewrite:
    """One function: where it stands, the constructs in it that read tensor values, its source before and after.

    ``functions`` run ``old`` and are to run ``code``, and so is what ``makers`` make when they run.
    """

    file: str
    line: int
    function: str
    constructs: tuple[tuple[int, str], ...]
    before: str = field(repr=False)
    after: str = field(repr=False)
    code: CodeType = field(repr=False, compare=False)
    functions: tuple[FunctionType, ...] = field(repr=False, compare=False)
    old: CodeType = field(repr=False, compare=False)
    makers: tuple[FunctionType, ...] = field(repr=False, compare=False)

    @property
    def sites(self) -> list[str]:
        """``file:line: construct in function``, one for each construct."""
        return [f"{self.file}:{line}: `{kind}` in {self.function}" for line, kind in self.constructs]

    def diff(self) -> str:
        """What changed, as a unified diff whose lines count from the function's first."""
        lines = difflib.unified_diff(
            self.before.splitlines(), self.after.splitlines(), f"{self.file}:{self.line}", "rewritten", lineterm=""
        )
        return "\n".join(lines)


@dataclass(frozen=True)
class Found:
    """What running a model told: functions that can be rewritten, and refusals for the rest."""

    rewrites: tuple[Rewrite, ...] = ()
    refusals: tuple[RewriteError, ...] = ()
    reads: tuple[Read, ...] = ()


def find(model: nn.Module, inputs: Any) -> Found:
    """Run ``model`` on sample inputs and rewrite, without putting it in place, every function that reads tensor values.

    Args:
        model: the module.
        inputs: a tuple or a dict of arguments, or a list of such, which take different branches.
    """
    from trueport.rewrite.watch import value_reads

    samples = inputs if isinstance(inputs, list) else [inputs]
    reads = value_reads(model, samples)
    grouped: dict[CodeType, list[Read]] = {}
    for read in reads:
        grouped.setdefault(read.code, []).append(read)
    rewrites, refusals = list[Rewrite](), list[RewriteError]()
    for code, group in grouped.items():
        try:
            made, strays = _rewrite(code, group)
        except RewriteError as error:
            refusals.append(error)
            continue
        rewrites += [made] if made is not None else []
        refusals += [_stray(read) for read in strays if read.kind == "bool"]
    return Found(tuple(rewrites), tuple(refusals), tuple(reads))


def _rewrite(code: CodeType, reads: list[Read]) -> tuple[Rewrite | None, tuple[Read, ...]]:
    import libcst as cst

    from trueport.rewrite.convert import converted
    from trueport.rewrite.mark import mark
    from trueport.rewrite.source import compiled, functions_of, makers_of, source_of

    source = source_of(code)
    shifted = [
        replace(
            read,
            start=(read.start[0], max(0, read.start[1] - source.indentation)),
            end=(read.end[0], max(0, read.end[1] - source.indentation)),
        )
        for read in reads
    ]
    marked = mark(source.text, shifted, source.first_line)
    if not marked.constructs:
        return None, marked.strays
    function = converted(marked.function, code.co_filename)
    functions, makers = tuple(functions_of(code)), tuple(makers_of(code))
    new = compiled(source, function)
    before, after = source.text, cst.Module([function]).code
    rewrite = Rewrite(
        code.co_filename,
        source.first_line,
        code.co_qualname,
        marked.constructs,
        before,
        after,
        new,
        functions,
        code,
        makers,
    )
    return rewrite, marked.strays


def _stray(read: Read) -> RewriteError:
    return RewriteError(
        f"{read.file}:{read.start[0]}: `{read.line}` reads a tensor's value in a construct that has no form in a graph",
        "Write torch.maximum for max(), torch.isin for `in`, torch.where for a choice, or assign the test to an `if`.",
    )


@contextmanager
def rewritten(model: nn.Module, inputs: Any, report: Report) -> Iterator[None]:
    """Within, the functions of ``model`` that read tensor values are rewritten.

    What cannot be rewritten is left as it is. If the block then fails, the refusal is what the user is told.
    """
    from trueport.rewrite.source import exchanged

    samples = sample_inputs(model) if inputs is None else inputs
    found = Found()
    if samples is None:
        report.notes.append("control flow was not looked at: no sample inputs were given")
    else:
        try:
            found = find(model, samples)
        except Exception as error:
            summary = textwrap.shorten(f"{type(error).__name__}: {error}", 200)
            report.notes.append(f"control flow was not looked at: the model fails on the sample inputs ({summary})")
    report.rewrites += found.rewrites
    report.notes += [f"not rewritten: {refusal}" for refusal in found.refusals]
    with ExitStack() as stack:
        for rewrite in found.rewrites:
            stack.enter_context(exchanged([*rewrite.functions], [*rewrite.makers], rewrite.old, rewrite.code))
        try:
            yield
        except RewriteError:
            raise
        except Exception as error:
            inner = _rewrite_error(error)
            if inner is not None:
                raise inner from error
            if found.refusals and _is_data_dependent(error):
                raise found.refusals[0] from error
            raise


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _rewrite_error(error: Exception) -> RewriteError | None:
    """A refusal of the runtime's, which torch.export may have wrapped."""
    return next((cause for cause in _chain(error) if isinstance(cause, RewriteError)), None)


def _is_data_dependent(error: Exception) -> bool:
    words = ("DataDependent", "data-dependent", "Could not guard", "Could not extract")
    return isinstance(error, CaptureError) or any(
        word in f"{type(cause).__name__} {cause}" for cause in _chain(error) for word in words
    )


def sample_inputs(model: nn.Module) -> Mapping[str, Any] | None:
    """A PreTrainedModel's own dummy inputs, as far as its forward takes them; None for any other module."""
    import inspect

    try:
        dummies = getattr(model, "dummy_inputs", None)
    except Exception:
        return None
    if not isinstance(dummies, Mapping):
        return None
    names = set(inspect.signature(model.forward).parameters)
    return {name: value for name, value in dummies.items() if name in names}
