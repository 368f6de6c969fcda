"""What has no form in a graph is refused: file and line, the construct, and what to write instead."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import nn

import trueport
from trueport.errors import RewriteError

X = torch.arange(12.0).reshape(3, 4)


class DifferentKinds(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mode = "up"
        if x.sum() > 0:  # here
            mode = "down"
        return x if mode == "up" else -x


class NoneOrTensor(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = x > 3
        if not mask.any():  # here
            mask = None
        return x if mask is None else x * mask


class DifferentDtypes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.double() if x.sum() > 0 else x  # here
        return y + 1


class DifferentRanks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        if x.sum() > 0:  # here
            y = x[None]
        return y + 1


class Attribute(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # here
            self.seen = x
        return x


class GrowsOnOneWay(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x]
        if x.sum() > 0:  # here
            parts.append(x * 2)
        return torch.stack(parts).sum(0)


class GrowsInWhile(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        while x.sum() < 900:  # here
            x = x * 2
            parts.append(x)
        return torch.stack(parts)


class ChangesShape(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        while y.sum() < 900:  # here
            y = torch.cat([y, x])
        return y


class ReadsItsList(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = []
        for row in x:
            parts.append(row if not parts else parts[-1] + row)  # not here: the message names the list
        return torch.stack(parts)


class WithLeft(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            if x.sum() > 0:  # here
                return x
            x = x + 1
        return x * 2


class WhileElse(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while x.sum() < 900:  # here
            x = x * 2
        else:
            x = x + 1
        return x


class Generator(nn.Module):
    def rows(self, x: torch.Tensor):
        if x.sum() > 0:  # here
            yield x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(list(self.rows(x)))


class InTry(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # here
            try:
                x = x + 1
            except ValueError:
                x = x - 1
        return x


class AliasWritten(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        view = y[0]
        if x.sum() > 0:  # here
            y.mul_(2)
            y = y + view
        return y


class WalrusInAnd(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = x.mean()
        if x.sum() > 0 and (m := x.abs().max()) > 5:  # here
            x = x / m
        return x


class WalrusInTernary(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = x.mean()
        y = (m := x.max()) if x.sum() > 0 else x.min()  # here
        return x * y + m


class WalrusInWhile(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        while (m := x.sum()) < 900:  # here
            x = x * 2 + m
        return x + m


class MatchOnBool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        match bool(x.sum() > 0):  # here
            case True:
                return x * 2
            case _:
                return x * 3


class Log:
    def __init__(self) -> None:
        self.entries: list[torch.Tensor] = []
        self.last: torch.Tensor | None = None

    def keep(self, x: torch.Tensor) -> None:
        self.last = x


class ObjectsMethod(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        log = Log()
        if x.sum() > 0:  # here
            log.keep(x * 2)
        else:
            log.keep(x)
        return log.last


class ObjectsList(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        log = Log()
        if x.sum() > 0:  # here
            log.entries.append(x * 2)
        else:
            log.entries.append(x)
        return log.entries[-1]


class ListInDict(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = {"rows": []}
        if x.sum() > 0:  # here
            kept["rows"].append(x)
        else:
            kept["rows"].append(x * 2)
        return kept["rows"][0]


class ListAround(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = []

        def keep(row: torch.Tensor) -> None:
            if row.sum() > 0:  # here
                rows.append(row)
            else:
                rows.append(-row)

        keep(x[0])
        keep(x[1])
        return torch.stack(rows)


class OwnList(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kept = {}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kept = self.kept
        put = kept.__setitem__
        if x.sum() > 0:  # here
            put("y", x * 2)
        else:
            put("y", x)
        return kept.pop("y")


class ObjectInLoop(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        log = Log()
        for row in x:  # here
            log.entries.append(row * 2)
        return torch.stack(log.entries)


class WrittenOrReplaced(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = [x, x * 2]
        second = first
        if x.sum() > 0:  # here
            second[0] = x * 3
        else:
            second = [x * 5, x * 6]
        return first[0] + second[1]


class ScalarOrWhole(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:  # here
            return x.mean()
        return x


class DividedInWhile(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        step, total = x.sum().long() * 0, x.sum().long() * 0
        while step < 3:
            if step != 1:  # here
                total = total + 6 // (step - 1)
            step = step + 1
        return x + total


MODULES = (
    (WrittenOrReplaced, "the list second", "on both"),
    (ScalarOrWhole, "0 axes on one way", "unsqueeze"),
    (DividedInWhile, "forbids within a `while`", "clamp"),
    (WalrusInAnd, "`:=`", "line of its own"),
    (WalrusInTernary, "`:=`", "line of its own"),
    (WalrusInWhile, "`:=`", "before the loop"),
    (MatchOnBool, "`match`", "`elif`"),
    (ObjectsMethod, "the attribute last of a Log", "local variable"),
    (ObjectsList, "a list,", "local variable"),
    (ListInDict, "a list,", "local variable"),
    (ListAround, "a list,", "local variable"),
    (OwnList, "'y' of a dict", "local variable"),
    (ObjectInLoop, "a list,", "local variable"),
    (DifferentKinds, "mode", "'down' on one way and 'up'"),
    (NoneOrTensor, "mask", "tensor on both"),
    (DifferentDtypes, "float64", ".to("),
    (DifferentRanks, "axes", "unsqueeze"),
    (Attribute, "self.seen", "local variable"),
    (GrowsOnOneWay, "a list of 2 on one way", "same structure"),
    (GrowsInWhile, "the list parts", "`for`"),
    (ChangesShape, "the shape", "Append to a list"),
    (WithLeft, "`with`", "after the block"),
    (WhileElse, "`else`", "flag"),
    (Generator, "generator", "plain function"),
    (InTry, "`try:`", "Move it"),
    (AliasWritten, "view", "clone"),
)


@pytest.mark.parametrize(("module", "problem", "remedy"), MODULES)
@torch.no_grad()
def test_it_is_refused_with_its_line(module: type[nn.Module], problem: str, remedy: str) -> None:
    model = module().eval()
    with pytest.raises(RewriteError) as caught, trueport.exportable(model, inputs=(X,)):
        torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    lines, first = inspect.getsourcelines(module)
    line = first + next(number for number, text in enumerate(lines) if "# here" in text)
    assert f"{Path(__file__).name}:{line}" in str(caught.value)
    assert problem in str(caught.value) and remedy in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_growing_list_that_is_read_is_refused() -> None:
    model = ReadsItsList().eval()
    with pytest.raises(RewriteError, match="read within the loop"), trueport.exportable(model, inputs=(X,)):
        torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))


def test_source_that_cannot_be_read_is_refused_with_its_place() -> None:
    namespace: dict[str, object] = {"nn": nn}
    exec("class Made(nn.Module):\n    def forward(self, x):\n        return x if x.sum() > 0 else -x", namespace)
    model = namespace["Made"]().eval()  # type: ignore[operator]
    for made, words in ((model, "source cannot be read"), (LAMBDA, "lambda")):
        with pytest.raises(RewriteError, match=words), trueport.exportable(made, inputs=(X,)):
            torch.export.export(made, (X,))


class Calls(nn.Module):
    function = staticmethod(lambda x: x if x.sum() > 0 else -x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return type(self).function(x)


LAMBDA = Calls().eval()


def test_without_inputs_the_report_says_that_nobody_looked() -> None:
    with trueport.exportable(DifferentKinds().eval()) as context:
        assert any("no sample inputs" in note for note in context.report.notes)


@pytest.mark.slow
def test_a_second_rewrite_in_one_process_and_a_failure_between() -> None:
    model = NoneOrTensor().eval()
    code = NoneOrTensor.forward.__code__
    for _ in range(3):
        with pytest.raises(RewriteError), trueport.exportable(model, inputs=(X,)):
            assert NoneOrTensor.forward.__code__ is not code
            torch.export.export(model, (X,))
        assert NoneOrTensor.forward.__code__ is code
