"""Programs whose weights lie in a file of their own."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import trueport
from tests import zoo
from tests.conftest import EXAMPLES, Once
from trueport.artifact import read_manifest
from trueport.cli import app
from trueport.errors import ArtifactError

pytestmark = pytest.mark.xdist_group("executorch-external")  # most ask of one artefact

PTE, PTD = Path("executorch/model.pte"), Path("executorch/model.ptd")


@pytest.fixture(scope="session")
def beside(once: Once) -> Path:
    """T5: two methods that share their weights, proven; do not change it."""
    pytest.importorskip("executorch")
    return once(
        "executorch-beside",
        lambda out: trueport.export(
            EXAMPLES / "t5-dates", out, to="executorch", max_batch=2, max_length=32, max_pte=1000
        ),
    )


@pytest.mark.slow
def test_the_weights_lie_beside_the_program_and_it_is_proven(beside: Path) -> None:
    manifest = read_manifest(beside)
    assert manifest["proof"]["verdict"] == "proven"
    assert {part["data"] for part in manifest["components"].values()} == {str(PTD)}
    assert str(PTD) in manifest["files"]
    floats = sum(tensor.numel() for tensor in weights())
    assert (beside / PTD).stat().st_size >= 4 * floats
    assert (beside / PTE).stat().st_size < floats


def weights() -> list[torch.Tensor]:
    from transformers import AutoModelForSeq2SeqLM

    return list(AutoModelForSeq2SeqLM.from_pretrained(EXAMPLES / "t5-dates").parameters())


@pytest.mark.slow
def test_a_quantised_program_keeps_its_weights_beside_it_too(tmp_path: Path) -> None:
    model, bounds = zoo.build("distilbert"), {"max_batch": 2, "max_length": 32}
    told: list[tuple[int, int]] = []
    for name, most in (("within", None), ("beside", 0)):
        trueport.export(
            model,
            tmp_path / name,
            to="executorch",
            quantize="8da8w",
            proof=False,
            tokenizer=None,
            max_pte=most,
            bytes_done=lambda done, total: told.append((done, total)),
            **bounds,
        )
        size = sum(path.stat().st_size for path in (tmp_path / name / "executorch").iterdir())
        assert {(0, size), (size, size)} <= set(told), "the program, and what lies beside it"
    ids = torch.tensor([[7, 21, 40, 9]])
    within, other = (trueport.load(tmp_path / name)(ids)[0] for name in ("within", "beside"))
    assert torch.equal(within, other)
    assert (tmp_path / "beside" / PTE).stat().st_size < (tmp_path / "within" / PTE).stat().st_size


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def other(path: Path) -> None:
    path.write_bytes(b"not a flat tensor" * 100)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [gone, cut, other])
def test_a_damaged_file_is_one_line(beside: Path, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    shutil.copytree(beside, tmp_path / "out")
    damage(tmp_path / "out" / PTD)
    with pytest.raises(ArtifactError, match=r"model\.ptd"):
        trueport.load(tmp_path / "out")
    result = CliRunner().invoke(app, ["verify", str(tmp_path / "out")])
    assert result.exit_code in (1, 2) and "Traceback" not in result.output


@pytest.mark.slow
def test_the_weights_of_another_export_are_told_to_be(beside: Path, tmp_path: Path) -> None:
    """XNNPACK's are found by what is in them: it refused the inputs, said the message, where one was not there."""
    folder = Path(shutil.copytree(beside, tmp_path / "out"))
    content = (folder / PTD).read_bytes()
    keys = re.findall(rb"\x00([0-9a-f]{64})\x00", content)
    (folder / PTD).write_bytes(content.replace(keys[0], keys[0][::-1]))
    model = trueport.load(folder)
    with pytest.raises(
        ArtifactError, match=r"model\.ptd does not hold the weights of model\.pte: it is another export's"
    ):
        model.generate(torch.tensor([[43, 40, 1]]), max_new_tokens=2)


@pytest.mark.slow
def test_the_example_runs_it(beside: Path) -> None:
    prompt = "43 40 10 137 44 81 40 8 16 16 15 1"
    command = [sys.executable, str(EXAMPLES.parent / "run_pte.py"), str(beside), prompt]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    said = [int(token) for token in done.stdout.split()]
    ids = torch.tensor([[int(token) for token in prompt.split()]])
    assert said == trueport.load(beside).generate(ids)[0, 1:].tolist()
