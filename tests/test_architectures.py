"""Every architecture of the zoo passes the whole proof; docs/coverage.md is the same table for readers."""

from __future__ import annotations

import json

from pathlib import Path

import pytest

import trueport
from tests import zoo
from tests.conftest import Exported
from trueport.errors import TrueportError


REFUSED = {entry.name: entry.refused for entry in zoo.ENTRIES if entry.refused}


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in zoo.names() if name not in REFUSED])
def test_it_is_proven(exported: Exported, name: str) -> None:
    proof = json.loads((exported(name) / "proof.json").read_text())
    assert proof["verdict"] == "proven"
    asked = {clause["clause"]: clause["status"] for clause in proof["clauses"]}
    assert "fail" not in asked.values()
    role = {entry.name: entry.role for entry in zoo.ENTRIES}[name]
    if role != "encoder":
        assert asked["causal"] == asked["cache"] == asked["generate"] == "pass"


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_right_is_refused_loudly(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrueportError, match=REFUSED[name]):
        trueport.export(zoo.build(name), tmp_path / "out", tokenizer=None)
    assert not (tmp_path / "out").exists()
