"""Every architecture of the zoo passes the whole proof; docs/coverage.md is the same table for readers."""

from __future__ import annotations

import json

import pytest

from tests import zoo
from tests.conftest import Exported


@pytest.mark.slow
@pytest.mark.parametrize("name", zoo.names())
def test_it_is_proven(exported: Exported, name: str) -> None:
    proof = json.loads((exported(name) / "proof.json").read_text())
    assert proof["verdict"] == "proven"
    asked = {clause["clause"]: clause["status"] for clause in proof["clauses"]}
    assert "fail" not in asked.values()
    role = {entry.name: entry.role for entry in zoo.ENTRIES}[name]
    if role != "encoder":
        assert asked["causal"] == asked["cache"] == asked["generate"] == "pass"
