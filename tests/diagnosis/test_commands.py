"""``trueport patches`` and ``trueport diagnose`` on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests import zoo
from trueport.cli import app
from trueport.patches import registered

RUNNER = CliRunner()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("canine")
    zoo.build("canine").save_pretrained(place)
    return place


def test_patches_lists_all() -> None:
    done = RUNNER.invoke(app, ["patches"])
    assert done.exit_code == 0
    for patch in registered():
        assert patch.path in done.output and patch.symptom in done.output and patch.upstream in done.output


@pytest.mark.slow
def test_patches_for_a_model_says_what_happens_without(folder: Path) -> None:
    done = RUNNER.invoke(app, ["patches", "--for", str(folder)])
    assert done.exit_code == 0, done.output
    assert "CanineAttention.forward" in done.output and "longformer" not in done.output
    assert "without it: no export: " in done.output


@pytest.mark.slow
def test_patches_for_a_model_names_its_kernels(tmp_path: Path) -> None:
    zoo.build("mamba").save_pretrained(tmp_path)
    done = RUNNER.invoke(app, ["patches", "--for", str(tmp_path)])
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    start = next(number for number, line in enumerate(lines) if line.endswith("modeling_mamba.mamba_selective_scan"))
    assert "without it: no export: " in "".join(lines[start : start + 4])
    assert "MambaMixer.forward" in done.output


@pytest.mark.slow
def test_diagnose_names_patches_and_rewrites(folder: Path) -> None:
    done = RUNNER.invoke(app, ["diagnose", str(folder), "--show-rewrites"])
    assert done.exit_code == 0, done.output
    assert "model: exports" in done.output and "CanineAttention.forward" in done.output
    assert "Nothing is rewritten." in done.output
