"""What an export is told of options that its target does not read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trueport.options import READERS, unread

NOTHING: dict[str, Any] = dict.fromkeys(READERS)


@pytest.mark.parametrize(
    ("given", "targets", "told"),
    [
        ({}, ["onnx"], []),
        ({"opset": 23}, ["onnx"], []),
        ({"max_batch": 4}, ["onnx"], ["--max-batch 4 is for executorch and says nothing to onnx"]),
        ({"opset": 22}, ["executorch"], ["--opset 22 is for onnx and says nothing to executorch"]),
        ({"opset": 22, "max_length": 64}, ["executorch", "onnx"], []),
        ({"max_batch": 4}, ["a plug-in's"], []),
    ],
)
def test_an_option_that_nobody_reads_is_told(given: dict[str, Any], targets: list[str], told: list[str]) -> None:
    assert unread(NOTHING | given, [SimpleNamespace(name=name) for name in targets]) == told  # type: ignore[misc]
