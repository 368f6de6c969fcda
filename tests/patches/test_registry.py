"""Every patch resolves, does what its original does, and is undone."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from trueport.errors import CaptureError
from trueport.patches import Patch, exportable, registered


def everything(patches: tuple[Patch, ...]) -> list[Any]:
    return [patch.resolve()[2] for patch in patches]


@pytest.mark.parametrize("patch", registered(), ids=lambda patch: patch.path)
def test_it_agrees_with_its_original(patch: Patch) -> None:
    _, _, original = patch.resolve()
    function = original.__func__ if isinstance(original, (staticmethod, classmethod)) else original
    replacement = patch.replacement(function)
    replacement = replacement.__func__ if isinstance(replacement, (staticmethod, classmethod)) else replacement
    samples = patch.samples()
    assert samples, "a patch without samples is not tested"
    for sample in samples:
        wanted, got = function(*copy.deepcopy(sample)), replacement(*copy.deepcopy(sample))
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)


@pytest.mark.parametrize("patch", registered(), ids=lambda patch: patch.path)
def test_it_says_why_it_is_there(patch: Patch) -> None:
    assert patch.symptom and patch.upstream


def test_a_path_that_leads_nowhere_names_the_version() -> None:
    import transformers

    lost = Patch("transformers.models.bert.modeling_bert.Gone.forward", "s", "u", lambda f: f, list)
    with (
        pytest.raises(CaptureError, match=f"Gone.forward.*{transformers.__version__}"),
        exportable(nn.Linear(1, 1), patches=[lost]),
    ):
        pytest.fail("the block must not run")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=5), st.booleans())
def test_nesting_and_failing_leave_everything_as_it_was(fails: list[bool], together: bool) -> None:
    patches = registered()
    before = everything(patches)

    def nest(depth: int) -> None:
        if depth == len(fails):
            return
        with exportable(nn.Linear(1, 1), patches=patches if together else None):
            nest(depth + 1)
            if fails[depth]:
                raise RuntimeError

    try:
        nest(0)
    except RuntimeError:
        assert any(fails)
    assert all(now is then for now, then in zip(everything(patches), before, strict=True))
