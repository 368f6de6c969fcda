"""What the manifest says that a bound costs, against programs planned for half of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import trueport
from tests import zoo
from tests.conftest import Exported
from tests.targets.executorch.conftest import BATCH, LENGTH
from trueport.artifact import read_manifest


def memory(folder: Path) -> dict[str, Any]:
    return read_manifest(folder)["components"]["model"]["memory"]


@pytest.mark.slow
def test_half_of_the_length_saves_what_the_manifest_says(program: Exported, tmp_path: Path):
    whole = memory(program("bert"))
    half = {"max_batch": BATCH, "max_length": LENGTH // 2}
    trueport.export(zoo.build("bert"), tmp_path / "half", to="executorch", tokenizer=None, proof=False, **half)
    saved = whole["arena"] - memory(tmp_path / "half")["arena"]
    assert whole["saved_by_half"]["sequence_length"] == pytest.approx(saved, rel=0.05)
