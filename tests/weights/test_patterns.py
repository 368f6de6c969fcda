"""Patterns that are compiled when they are used are the patterns that ``re`` compiles."""

from __future__ import annotations

import copy
import re

import pytest
from transformers import core_model_loading

from trueport.weights.patterns import LatePattern, late_patterns


def test_a_late_pattern_is_a_pattern() -> None:
    late, pattern = LatePattern("(?P<g0>model\\.layers\\.)|(?P<g1>head)", re.IGNORECASE), re.compile("x")
    assert "compiled" not in vars(late)
    found = late.search("MODEL.layers.3")
    assert found is not None and found.lastgroup == "g0" and late.groupindex == {"g0": 1, "g1": 2}
    assert {name for name in dir(pattern) if not name.startswith("_")} <= set(dir(late.compiled))
    assert copy.deepcopy(late).sub("-", "model.layers.3.head") == "-3.-"


def test_it_refuses_what_re_refuses() -> None:
    with pytest.raises(re.error):
        LatePattern("(").search("")


def test_transformers_has_its_own_again() -> None:
    with late_patterns():
        renaming = core_model_loading.WeightRenaming("old.*.weight", "new.*.weight")
        assert isinstance(renaming.compiled_sources, LatePattern)
        assert core_model_loading.re.sub("a", "b", "aa") == "bb"
    assert core_model_loading.re is re
    assert isinstance(core_model_loading.WeightRenaming("old", "new").compiled_sources, re.Pattern)
