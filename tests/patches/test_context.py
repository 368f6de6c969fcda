"""``exportable``: reversible, re-entrant, confined to its thread, alone and kind by kind."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.fx import _pytree as fx_pytree
from torch.utils import _pytree as pytree

import trueport
from trueport.errors import CaptureError
from trueport.patches import Patch, registered


class Counter:
    """What the patches of these tests patch."""

    limit = 3

    def step(self, number: int) -> int:
        return number + 1

    @staticmethod
    def twice(number: int) -> int:
        return 2 * number


class Clamps(nn.Module):
    """Reads a value, as BART's float16 clamp does."""

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        if not torch.isfinite(states).all():
            states = torch.clamp(states, min=-10, max=10)
        return states


def own(name: str, replacement: Callable[[Any], Any]) -> Patch:
    return Patch(f"{__name__}.Counter.{name}", "counts wrongly", "nowhere", replacement, list)


STEP = own("step", lambda original: lambda self, number: original(self, number) + 10)
TWICE = own("twice", lambda original: lambda number: original(number) + 10)
LIMIT = own("limit", lambda original: original + 10)
BROKEN = own("step", lambda original: 1 / 0)
LOST = own("gone", lambda original: original)
X = torch.ones(2, 3)


def state_of_the_world() -> list[Any]:
    """Everything that a context may change, by identity."""
    found = [patch.resolve()[2] for patch in (*registered(), STEP, TWICE, LIMIT)]
    return [*found, Clamps.forward.__code__, *pytree.SUPPORTED_NODES.values(), *fx_pytree.SUPPORTED_NODES]


def test_a_report_says_what_and_why() -> None:
    with trueport.exportable(Clamps(), inputs=(X,), patches=[STEP]) as context:
        report = context.report
    assert STEP.path in report.applied and report.reasons[STEP.path] == "counts wrongly"
    assert "torch.nn.functional.scaled_dot_product_attention" in report.applied
    (rewrite,) = report.rewrites
    line = Clamps.forward.__code__.co_firstlineno + 1
    assert f"test_context.py:{line}: `if` in Clamps.forward" in str(report)
    assert "+        def _then" not in rewrite.diff() and "+    def _then" in rewrite.diff()


def test_every_kind_can_be_switched_off_alone() -> None:
    model, everything = Clamps(), {"torch", "caches", "rewrite"}

    def on(**switches: bool) -> set[str]:
        with trueport.exportable(model, inputs=(X,), **switches) as context:
            report = context.report
        kinds = {path.partition(".")[0] for path in report.applied}
        return kinds | ({"caches"} if report.registered else set()) | ({"rewrite"} if report.rewrites else set())

    import transformers.cache_utils  # noqa: F401

    assert on() == everything
    for kind in everything:
        assert on(**{kind: False}) == everything - {kind}


def test_transformers_patches_can_be_switched_off() -> None:
    from tests import zoo

    model = zoo.build("funnel")
    with trueport.exportable(model) as context:
        assert any("funnel" in path for path in context.report.applied)
    with trueport.exportable(model, transformers=False) as context:
        assert not any("funnel" in path for path in context.report.applied)
    with trueport.exportable(model, skip=context.report.applied) as context:
        assert "torch.nn.functional.scaled_dot_product_attention" not in context.report.applied


def test_static_methods_and_constants() -> None:
    with trueport.exportable(Clamps(), patches=[STEP, TWICE, LIMIT], rewrite=False):
        assert (Counter().step(1), Counter.twice(1), Counter().twice(1), Counter.limit) == (12, 12, 12, 13)
    assert (Counter().step(1), Counter.twice(1), Counter.limit) == (2, 2, 3)


def test_a_patch_applies_to_the_versions_that_it_names() -> None:
    import dataclasses

    patch = registered()[0]
    assert dataclasses.replace(patch, versions=">=2").applies_to(set())
    assert not dataclasses.replace(patch, versions="<2").applies_to(set())


def test_entered_twice_it_patches_once() -> None:
    with (
        trueport.exportable(Clamps(), patches=[STEP]),
        trueport.exportable(Clamps(), patches=[STEP]) as inner,
    ):
        assert Counter().step(1) == 12
        assert STEP.path not in inner.report.applied
    assert Counter().step(1) == 2


def test_another_thread_meets_the_originals_and_waits_to_enter() -> None:
    seen: list[object] = []
    entered = threading.Event()

    def elsewhere() -> None:
        seen.append(Counter().step(1))
        entered.set()
        with trueport.exportable(Clamps(), patches=[STEP], rewrite=False):
            seen.append(Counter().step(1))

    thread = threading.Thread(target=elsewhere)
    with trueport.exportable(Clamps(), patches=[STEP], rewrite=False):
        thread.start()
        assert entered.wait(10)
        assert Counter().step(1) == 12
        thread.join(0.05)
        assert thread.is_alive() and seen == [2]
    thread.join(10)
    assert seen == [2, 12]


@pytest.mark.parametrize("bad", [BROKEN, LOST])
def test_a_patch_that_fails_leaves_nothing(bad: Patch) -> None:
    before = state_of_the_world()
    with pytest.raises((CaptureError, ZeroDivisionError)), trueport.exportable(Clamps(), patches=[STEP, bad]):
        pytest.fail("the block must not run")
    assert all(now is then for now, then in zip(state_of_the_world(), before, strict=True))


LEVEL = st.tuples(
    st.lists(st.sampled_from([STEP, TWICE, LIMIT]), max_size=3, unique=True),
    st.fixed_dictionaries({kind: st.booleans() for kind in ("torch", "transformers", "caches", "rewrite")}),
    st.sampled_from(["fine", "fails within", "fails after", "broken patch"]),
)


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(st.lists(LEVEL, min_size=1, max_size=4))
def test_nesting_and_failing_leave_everything_as_it_was(levels: list[Any]) -> None:
    before = state_of_the_world()

    def nest(depth: int) -> None:
        if depth == len(levels):
            return
        patches, kinds, fate = levels[depth]
        if fate == "broken patch":
            patches = [*patches, BROKEN] if STEP not in patches else [*patches, LOST]
        with trueport.exportable(Clamps(), inputs=(X,), patches=patches, **kinds):
            if fate == "fails within":
                raise RuntimeError
            nest(depth + 1)
            if fate == "fails after":
                raise KeyboardInterrupt

    try:
        nest(0)
    except (RuntimeError, KeyboardInterrupt, CaptureError, ZeroDivisionError):
        assert any(fate != "fine" for _, _, fate in levels)
    after = state_of_the_world()
    assert len(after) == len(before) and all(now is then for now, then in zip(after, before, strict=True))


def test_alone_it_makes_torch_export_work() -> None:
    model = Clamps()
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(model, (X,))
    with trueport.exportable(model, inputs=(X,)):
        program = torch.export.export(model, (X,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    for states in (X, X * torch.inf, torch.full((5, 3), torch.nan)):
        torch.testing.assert_close(program.module()(states), model(states), equal_nan=True)
