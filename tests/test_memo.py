"""What is known of an operator's result is what torch says each time."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from trueport.memo import Memo

aten = torch.ops.aten


def looks(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return [looks(entry) for entry in value]
    if not isinstance(value, torch.Tensor):
        return value
    return tuple(value.shape), value.stride(), value.dtype, value.device


def both(memo: Memo, func: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]:
    """The second call's result, and torch's own."""
    memo.call(func, args, kwargs)
    return memo.call(func, args, kwargs), func(*args, **kwargs)


@settings(max_examples=60, deadline=None)
@given(sizes=st.lists(st.integers(0, 3), min_size=2, max_size=2), turned=st.booleans())
def test_results_look_as_torchs_do(sizes: list[int], turned: bool) -> None:
    memo = Memo()
    with FakeTensorMode():
        x = torch.empty(*sizes, 4)
        x = x.transpose(0, 1) if turned else x
        weight = torch.empty(5, 4)
        for func, args in (
            (aten.relu.default, (x,)), (aten.transpose.int, (x, 0, 2)), (aten.split.Tensor, (x, 2, 2)),
            (aten.cat.default, ([x, x], 1)), (aten.mul.Tensor, (x, 2)), (aten.add.Tensor, (x, x)),
            (aten.sum.dim_IntList, (x, [0])),
            (aten.mm.default, (weight, aten.t.default(weight))), (aten._to_copy.default, (x,)), (aten.max.dim, (x, 2)),
            (aten.slice.Tensor, (x, 2, 1, 3)),
        ):  # fmt: skip
            found, wanted = both(memo, func, *args)
            assert looks(found) == looks(wanted) and isinstance(found, tuple) == isinstance(wanted, tuple)
            assert looks(aten.neg.default(found if isinstance(found, torch.Tensor) else found[0]))
        assert memo.known


def test_sizes_may_be_symbols() -> None:
    memo, mode = Memo(), FakeTensorMode(shape_env=ShapeEnv())
    marked = torch.empty(5, 7, 4)
    torch._dynamo.mark_dynamic(marked, 0)
    torch._dynamo.mark_dynamic(marked, 1)
    x = mode.from_tensor(marked)
    rows, columns = x.shape[:2]
    assert isinstance(rows, torch.SymInt)
    with mode:
        for func, args in (
            (aten.transpose.int, (x, 0, 1)), (aten.view.default, (x, [rows * columns, 4])), (aten.add.Tensor, (x, x)),
            (aten.slice.Tensor, (x, 2, 1, 3)), (aten.slice.Tensor, (x, 1, 0, 2)),
            (aten.new_zeros.default, (x, [columns, rows])), (aten.max.dim, (x, 1)),
        ):  # fmt: skip
            found, wanted = both(memo, func, *args)
            assert looks(found) == looks(wanted)
            one, other = (value if isinstance(value, torch.Tensor) else value[0] for value in (found, wanted))
            assert one.storage_offset() == other.storage_offset()
        assert len(memo.known) == 7
        again = memo.call(aten.view.default, (x, [columns * 4, rows]), {})  # another shape, of the same symbols
        assert again.shape[1] == rows
        first, second = (memo.call(aten.nonzero.default, (torch.empty(3),), {}) for _ in range(2))
        assert str(first.shape[0]) != str(second.shape[0]), "each has a length of its own"


def test_what_is_changed_in_place_is_looked_at_again() -> None:
    memo = Memo()
    with FakeTensorMode():
        x = torch.empty(2, 3)
        memo.call(aten.relu.default, (x,), {})
        memo.call(aten.t_.default, (x,), {})
        assert memo.call(aten.relu.default, (x,), {}).shape == (3, 2)


def test_each_result_is_a_tensor_of_its_own() -> None:
    memo = Memo()
    with FakeTensorMode():
        x = torch.empty(2, 3)
        first, second = memo.call(aten.relu.default, (x,), {}), memo.call(aten.relu.default, (x,), {})
        third = memo.call(aten.relu.default, (x,), {})
    assert len({id(first), id(second), id(third)}) == 3


def test_equal_numbers_of_other_kinds_are_told_apart() -> None:
    memo = Memo()
    with FakeTensorMode():
        n = torch.empty(2, dtype=torch.int64)
        dtypes = [memo.call(aten.mul.Scalar, (n, number), {}).dtype for number in (1, 1.0, True, 1)]
        cast = [memo.call(aten._to_copy.default, (n,), {"dtype": d}).dtype for d in (torch.float16, torch.float32)]
    assert dtypes == [torch.int64, torch.float32, torch.int64, torch.int64]
    assert cast == [torch.float16, torch.float32]


def test_what_writes_or_asks_for_values_is_asked_each_time() -> None:
    memo, real = Memo(), torch.arange(3)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        x = torch.empty(2, 3)
        assert memo.call(aten.add_.Tensor, (x, 1), {}) is x and memo.call(aten.add_.Tensor, (x, 1), {}) is x
        values = mode.from_tensor(real)
        memo.call(aten.add.Tensor, (real, values), {})  # a tensor with memory
        assert not memo.known
        with pytest.raises(DynamicOutputShapeException):
            memo.call(aten.nonzero.default, (x,), {})


def test_results_that_are_told_are_made_anew() -> None:
    memo, real = Memo(), torch.ones(2)
    with FakeTensorMode():
        told = [torch.empty(2, 3).t(), torch.empty(4, dtype=torch.int64)]
        made = memo.like(told)
        assert looks(made) == looks(told) and isinstance(made, list)
        assert not {id(tensor) for tensor in made} & {id(tensor) for tensor in told}
        assert isinstance(memo.like(tuple(told)), tuple) and memo.like([*told, real]) is None
