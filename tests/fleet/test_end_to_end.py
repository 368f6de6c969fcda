"""The whole way, with the real worker: two models, from the command to artefacts that are loaded and run."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.conftest import EXAMPLES
from tests.fleet.conftest import Fleet
from trueport.artifact import changed_files, read_manifest


@pytest.mark.slow
def test_two_models_from_the_command_line(fleet: Fleet) -> None:
    shutil.copytree(EXAMPLES / "llama-tales", fleet.folder / "llama")
    fleet.plan.write_text(
        f'out = "out"\n[defaults]\ntime = "10m"\nmemory = "8GB"\n[[model]]\nmodel = "{EXAMPLES / "bert-sentiment"}"\n'
        'name = "bert"\n[[model]]\nmodel = "llama"\nweights = "link"\ntokenizer = false\nproof = false\n'
    )
    words = [sys.executable, "-m", "trueport", "fleet", "run", str(fleet.plan), "--jobs", "1"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done
    assert fleet.statuses() == {"bert": "proven", "llama": "unproven"}
    assert "2 models: 1 proven, 1 unproven." in done.stdout
    assert fleet.artefacts() == ["bert", "llama"]
    for name in ("bert", "llama"):
        assert changed_files(fleet.out / name, read_manifest(fleet.out / name)) == []
    # It was worked on beside its place, on the same disk: what can be a link is one.
    assert any(path.stat().st_nlink == 2 for path in (fleet.out / "llama" / "onnx").iterdir())

    again = subprocess.run(words, capture_output=True, text=True)
    assert again.returncode == 0 and again.stdout.count("(done before)") == 2
    assert len(fleet.events("started")) == 2
