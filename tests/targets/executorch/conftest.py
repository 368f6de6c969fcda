"""Programs that the tests of this target share."""

from __future__ import annotations

from pathlib import Path

import pytest
from filelock import FileLock

import trueport
from tests import zoo
from tests.conftest import EXAMPLES, Exported

BATCH, LENGTH = 4, 64
"""Bounds of the shared programs: small, so that the proof asks at the very end of them."""


@pytest.fixture(scope="session")
def program(shared_folder: Path) -> Exported:
    """The folder of a zoo model or of an example as a program, proven, exported on first use; do not change it."""
    pytest.importorskip("executorch")

    def get(name: str) -> Path:
        out = shared_folder / f"executorch-{name}"
        with FileLock(f"{out}.lock"):
            if not out.exists():
                example = EXAMPLES / name
                trueport.export(
                    example if example.is_dir() else zoo.build(name),
                    out,
                    to="executorch",
                    max_batch=BATCH,
                    max_length=LENGTH,
                    tokenizer="auto" if example.is_dir() else None,
                )
        return out

    return get
