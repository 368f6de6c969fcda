"""Programs that the tests of this target share."""

from __future__ import annotations

from pathlib import Path

import pytest

import trueport
from tests import zoo
from tests.conftest import EXAMPLES, Exported, Once

BATCH, LENGTH = 4, 64
"""Bounds of the shared programs: small, so that the proof asks at the very end of them."""


@pytest.fixture(scope="session")
def program(once: Once) -> Exported:
    """The folder of a zoo model or of an example as a program, proven, exported on first use; do not change it."""
    pytest.importorskip("executorch")

    def get(name: str) -> Path:
        example = EXAMPLES / name
        model = example if example.is_dir() else zoo.build(name)
        bounds = {"max_batch": BATCH, "max_length": LENGTH}
        tokenizer = "auto" if example.is_dir() else None
        return once(
            f"executorch-{name}",
            lambda out: trueport.export(model, out, to="executorch", tokenizer=tokenizer, **bounds),
        )

    return get
