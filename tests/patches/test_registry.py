"""Every patch resolves, does what its original does, and is undone."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

import trueport
from tests import zoo
from trueport.errors import CaptureError, TrueportError
from trueport.patches import Patch, exportable, registered, registry


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


@pytest.mark.slow
@pytest.mark.parametrize("patch", registered(), ids=lambda patch: patch.path)
def test_without_it_a_model_does_not_come_out_right(
    patch: Patch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A patch that nothing needs any more is to be removed."""
    rest = tuple(other for other in registered() if other is not patch)
    monkeypatch.setattr(registry, "registered", lambda: rest)
    model = zoo.build(patch.model)
    with pytest.raises(TrueportError):
        trueport.export(model, tmp_path / "out", tokenizer=None)
