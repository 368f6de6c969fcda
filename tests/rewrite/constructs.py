"""One module for each construct that reads a tensor's value, with inputs that take every way through it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

ONES = torch.arange(12.0).reshape(3, 4) / 6 - 0.5


LOOP = "refused: to_executorch knows no while_loop"
SIZE = "refused: to_edge asserts on a number read from a tensor"
"""Why ExecuTorch 1.4.1 refuses a construct; each is asserted, so that a mend upstream is seen."""


@dataclass(frozen=True)
class Case:
    """A module, the construct that must be found, the inputs, and why ExecuTorch 1.4.1 refuses it; "" if it does not."""

    module: type[nn.Module]
    construct: str
    inputs: tuple[torch.Tensor, ...]
    executorch: str = ""

    def __str__(self) -> str:
        return self.module.__name__


class EarlyReturn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 10:
            return self.linear(x)
        y = x - 1
        return y * 2


class TwoEarlyReturns(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 10:
            if x.max() > 5:
                return x
            x = x + 1
        elif x.min() < -2:
            return -x
        return x * 2


class Elif(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 10:
            y = x + 1
        elif x.sum() > 0 and not x.max() > 5:
            # This comment survives.
            y = x * 2
        else:
            y = -x
        return y


class AndOrNot(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.ndim == 2 and (not x.any() or x.sum() > 10) and not torch.isnan(x).any():
            x = x + 1
        return x


class Ternary(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = 2.0 if x.sum() > 0 else 3.0
        return x * scale if x.max() > 1 else x - scale


class ValueOfOr(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * (x.clamp(min=0).sum() or x.min())


class While(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count = 0
        while x.abs().sum() < 100 and count < 5:
            x = x * 2
            count += 1
        return x, x + count


class WhileWithBreak(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x
        while total.sum() < 100:
            total = total + x.abs() + 1
            if total.max() > 20:
                total = total - 1
                break
            total = total * 1.5
        return total


class Break(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = torch.zeros(4)
        for row in x:
            if row.sum() > 3:
                break
            total = total + row
        return total


class Continue(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = 0
        for row in x:
            if row.sum() < 0:
                continue
            total = total + row
        return x + total


class ReturnInLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
            if x.max() > 1:
                return x * 10
        return x


class Accumulator(nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rows = []
        state = torch.zeros(4)
        for index, row in enumerate(x):
            state = torch.tanh(state + row)
            rows.append(state * index)
        return torch.stack(rows, dim=1), state


class Concatenated(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        rows = []
        for first, second in zip(x, x * 2, strict=True):
            rows.append(first[None] + second.sum())
        return torch.cat(rows)


class Comprehension(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([row * row.sum() for row in x])


class RangeOfItem(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = (x > 0).sum().item()
        total = torch.zeros(4)
        for index in range(count):
            total = total + index
        if count > 8:
            total = total * 2
        return total


class RangeConstant(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for index in range(3):
            if x.sum() < 20:
                x = x + index + 1
        return x


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.clone()
        view = y[0]
        if x.sum() > 0:
            y[1] = 5
            y.mul_(2)
        return y + view


class Submodule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.register_buffer("offset", torch.ones(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.first(x) if x.sum() > 0 else x
        if y.max() > 0:
            y = self.first(y) + self.offset
        return y


class PythonVariables(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mode, extra, scale = "plain", None, 1
        if x.sum() > 0:
            mode, extra, scale = "plain", None, 2
            unused = "only here"
            x = x + len(unused)
        return x * scale if extra is None and mode == "plain" else x


class Structures(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts, named = [x], {"a": x}
        if x.sum() > 0:
            parts = [x * 2]
            named["a"] = x + 1
            pair = (x, x + 3)
        else:
            pair = (x * 3, x)
        return parts[0] + named["a"] + pair[0] * pair[1]


class Clamp(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(x).all():
            clamp_value = torch.finfo(x.dtype).max - 1000
            x = torch.clamp(x, min=-clamp_value, max=clamp_value)
        return x


class Numbers(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        factor = float(x.max())
        positive = bool(x.sum() > 0)
        count = int((x > 0).sum())
        if positive and count != 3:
            x = x * factor
        return x + x.mean().item() + count


class Checks(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert x.max() < 1000, "too large"
        if x.min() < -1000:
            raise ValueError(f"too small: {x.min()}")
        return x + 1


class IfWithinWhileWithinIf(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            while x.sum() < 50:
                if x.max() > 4:
                    x = x + 2
                else:
                    x = x * 2 + 1
        return x


class Base(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * 3


class Super(Base):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if (total := x.sum()) > 0:
            return super().forward(x) + total
        return x


class Helper(nn.Module):
    __offset = 3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def shifted(y: torch.Tensor) -> torch.Tensor:
            return y + self.__offset if y.sum() > 0 else y

        return shifted(x) * helper(x)


def helper(x: torch.Tensor) -> torch.Tensor:
    return x.abs() if x.min() < 0 else x


class NormInBranch(nn.Module):
    """Operators that the ExecuTorch target spells out anew, within a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        far = x * 4 + 30
        if x.sum() > 10:
            return nn.functional.gelu(self.norm(far), approximate="tanh")
        return self.norm(far)


class ChainedComparison(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m = x.mean()
        if -0.2 < m * 2 <= 3.5:
            return x + m
        return x - m


class AnyAndAll(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if any(row.sum() > 3 for row in (x[0], x[1])):
            x = x + 1
        if all([x[0].sum() > 0, x[1].sum() > 0]):
            x = x * 2
        return x


class Membership(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if 0 in x:
            x = x + 1
        if x.max() not in (x[0, 0], x[1, 1]):
            x = x * 3
        return x


class KeptBool(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flag = not x.sum() > 0
        if flag:
            x = x - 1
        other = bool(x.max() > 3)
        if other is True:
            x = x * 2
        return x


class SumOfBools(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = bool(x.sum() > 0) + bool(x.max() > 3)
        count += (x.min() > 2).item()
        other = (x.max() > 3).item() * 2 + (x.sum() > 0).item()
        return x * count + other


def scaled(limit: float):
    def inner(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > limit else x

    return inner


class MadeInForward(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return scaled(2.0)(x) + scaled(50.0)(x)


class GuardedDivision(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.max().long()
        if n != 0 and (n + 20) // n > 2:
            return x * 2
        return x


class HalfNumber(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = float(x.half().abs().sum()) + x.half().max().item()
        return x + size * 60000


class ListsWithTwoNames(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = [x, x * 2]
        second = first
        if x.sum() > 0:
            second = [x * 3, x * 4]
        else:
            second = [x * 5, x * 6]
        return first[0] + second[1]


class TryFinally(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        try:
            if x.sum() > 0:
                y = y / 3
        except ValueError:
            y = x
        else:
            if x.max() > 3:
                y = y + 1
        finally:
            z = y + 1
            if z.min() < -3:
                z = z * 2
        return z


class ReadLater(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = torch.ones(())

        def scaled_by(y: torch.Tensor) -> torch.Tensor:
            return y * scale

        if x.sum() > 0:
            scale = x.abs().max() + 1
        return scaled_by(x)


class CountedInWhile(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        count = 0
        done = bool(x.sum() > 900)
        while not done:
            x = x.abs() * 2 + 0.5
            count += 1
            if count > 6:
                break
            done = bool(x.sum() > 900)
        return x + count


UP, DOWN, LONG = ONES + 5, ONES - 9, torch.cat([ONES, ONES + 1, -ONES])
CASES = (
    Case(EarlyReturn, "if", (ONES, UP)),
    Case(TwoEarlyReturns, "if", (ONES, UP, ONES + 1, DOWN)),
    Case(Elif, "not", (ONES, UP, -UP, ONES * 4)),
    Case(AndOrNot, "or", (ONES, UP, ONES * 0, ONES * torch.nan)),
    Case(Ternary, "ternary", (ONES, UP, DOWN)),
    Case(ValueOfOr, "or", (ONES, UP, DOWN)),
    Case(While, "while", (ONES, UP, UP * 9, ONES / 99), executorch=LOOP),
    Case(WhileWithBreak, "while", (ONES, UP, UP * 9, ONES * 9), executorch=LOOP),
    Case(Break, "for", (ONES, UP, LONG)),
    Case(Continue, "for", (ONES, UP, LONG)),
    Case(ReturnInLoop, "if", (ONES, UP * 3, DOWN, ONES * 0)),
    Case(Accumulator, "for", (ONES, LONG)),
    Case(Concatenated, "for", (ONES, LONG)),
    Case(Comprehension, "list comprehension", (ONES, LONG)),
    Case(RangeOfItem, "for", (ONES, UP, -UP, LONG), executorch=SIZE),
    Case(RangeConstant, "if", (ONES, UP, DOWN)),
    Case(InPlace, "if", (ONES, DOWN)),
    Case(Submodule, "ternary", (ONES, DOWN)),
    Case(PythonVariables, "if", (ONES, DOWN)),
    Case(Structures, "if", (ONES, DOWN)),
    Case(Clamp, "not", (ONES, ONES * torch.inf)),
    Case(Numbers, "float()", (ONES, UP, DOWN), executorch=SIZE),
    Case(Checks, "assert", (ONES, UP)),
    Case(IfWithinWhileWithinIf, "while", (ONES, UP, DOWN, ONES * 3), executorch=LOOP),
    Case(Super, "if", (ONES, DOWN)),
    Case(Helper, "ternary", (ONES, UP, DOWN)),
    Case(NormInBranch, "if", (ONES, UP)),
    Case(ChainedComparison, "chained comparison", (ONES, UP, DOWN)),
    Case(AnyAndAll, "any()", (ONES, UP, DOWN, -UP)),
    Case(Membership, "in", (ONES, UP, DOWN, ONES * 0)),
    Case(KeptBool, "not", (ONES, UP, DOWN)),
    Case(SumOfBools, "bool()", (ONES, UP, DOWN)),
    Case(GuardedDivision, "and", (ONES * 9, UP, DOWN, ONES * 0)),
    Case(HalfNumber, "float()", (ONES, UP)),
    Case(ListsWithTwoNames, "if", (ONES, DOWN)),
    Case(TryFinally, "if", (ONES, UP, DOWN)),
    Case(ReadLater, "if", (ONES, UP, DOWN)),
    Case(CountedInWhile, "while", (ONES, UP * 9, UP * 99), executorch=LOOP),
    Case(MadeInForward, "ternary", (ONES, UP, UP * 3)),
)
