"""False alarms: what Trueport exports is right, so the audit must find nothing in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import zoo
from tests.conftest import Exported
from trueport.graphs.audit import audit

FAST = ("bert",)
SEEN = {"bert", "llama", "mistral", "gemma3_text", "t5", "bart", "gpt2", "bloom", "deberta"}
"""Families of whose layers none may be overlooked."""


def assert_clean(folder: Path) -> int:
    """Layers of attention that the audit saw, none of which it blames."""
    reports = [audit(path) for path in sorted((folder / "onnx").glob("*.onnx"))]
    for report in reports:
        assert report.clean, report.text()
    return sum(report.attentions for report in reports)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in zoo.names()],
)
def test_exports_are_clean(name: str, exported: Exported) -> None:
    seen = assert_clean(exported(name))
    assert seen >= 2 or name not in SEEN
