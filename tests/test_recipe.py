"""``FILE.py:NAME``: a module of the user's own from the command line."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import trueport
from tests.conftest import ROOT
from trueport.errors import SourceError
from trueport.recipe import opened

FILE = """
import torch
from torch import nn
{more}
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x):
        if x.sum() > 0:
            return self.layer(x)
        return self.layer(x) * 2

def recipe():
    torch.manual_seed(0)
    return {{"model": Net().eval(), "inputs": (torch.randn(2, 4),)}}
"""


def written(folder: Path, more: str = "", name: str = "small_net.py") -> Path:
    path = folder / name
    path.write_text(FILE.format(more=more))
    return path


@pytest.mark.slow
def test_a_file_is_exported_verified_and_diagnosed(tmp_path: Path) -> None:
    path = written(tmp_path)
    trueport.export(str(path), tmp_path / "out")
    proof = trueport.verify(tmp_path / "out", against=f"{path}:recipe")
    assert proof.proven and proof.reference is not None
    assert trueport.load(tmp_path / "out")(torch.ones(5, 4))[0].shape == (5, 3)
    found = trueport.diagnose(f"{path}:recipe")
    assert any("small_net.py" in line for line in found.lines())


@pytest.mark.slow
def test_the_command(tmp_path: Path) -> None:
    source = ROOT / "examples" / "custom_mems.py"
    done = subprocess.run(
        [sys.executable, "-m", "trueport", "export", f"{source}:recipe", str(tmp_path / "out")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "proof.json").is_file()


@pytest.mark.slow
def test_the_commands_processes_hash_alike(tmp_path: Path) -> None:
    """The order of a model's sets is the order of its graph; 64 random bits would differ. A seed of the user's stays."""
    more = "import os, sys\n\ndef told():\n    sys.exit(f'{hash(os.__name__)} {os.getpid()}')\n"
    path = written(tmp_path, more)
    free = {name: value for name, value in os.environ.items() if name != "PYTHONHASHSEED"}
    found = []
    for environment in (free, free, free | {"PYTHONHASHSEED": "7"}):
        command = [sys.executable, "-m", "trueport", "export", f"{path}:told", str(tmp_path / "out")]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        said, _ = process.communicate(timeout=120)
        number, pid = re.search(r"(-?\d+) (\d+)", said).groups()  # type: ignore[union-attr]
        assert int(pid) == process.pid, "the process is the one that was started: signals reach it"
        found.append(number)
    assert found[0] == found[1] != found[2]


def test_a_module_and_its_class(tmp_path: Path) -> None:
    path = written(tmp_path, name="net_by_class.py")
    assert type(opened(f"{path}:Net").model).__name__ == "Net"


@pytest.mark.parametrize(
    ("more", "name", "words"),
    [
        ("", "absent", "has no absent. It defines Net, recipe"),
        ("import no_such_library", "recipe", r"ModuleNotFoundError at line 4: No module named 'no_such_library'"),
        ("x = (", "recipe", "raises SyntaxError at line 4"),
        ("def wrong():\n    return 3\n", "wrong", "gives a int"),
        ("def wrong():\n    return {'model': nn.Linear(1, 1), 'input': 3}\n", "wrong", "gives input too"),
        ("def wrong():\n    raise ValueError('no weights here')\n", "wrong", "ValueError at line 5: no weights here"),
    ],
)
def test_what_is_wrong_is_one_line(more: str, name: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path, more, name="wrong_net.py")
    with pytest.raises(SourceError, match=words) as caught:
        opened(f"{path}:{name}")
    assert "\n" not in str(caught.value)


def test_the_line_is_told_of_a_file_named_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path, "import no_such_library", name="relative_net.py")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match="at line 4"):
        opened("relative_net.py")


def test_places(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="There is no file"):
        opened(str(tmp_path / "nothing.py"))
    (tmp_path / "json.py").write_text("")
    with pytest.raises(SourceError, match="Rename the file"):
        opened(str(tmp_path / "json.py"))
    with pytest.raises(SourceError, match="in one place"):
        opened(str(written(tmp_path, name="given_twice.py")), inputs=(torch.ones(1, 4),))
    assert opened("organisation/model").model == "organisation/model"
    (tmp_path / "model.py").mkdir()  # a folder may be called so
    assert opened(tmp_path / "model.py").model == tmp_path / "model.py"


@pytest.mark.slow
def test_a_tensor_alone_is_the_only_input(tmp_path: Path) -> None:
    path = written(tmp_path, "def alone():\n    return {'model': Net().eval(), 'inputs': torch.randn(2, 4)}\n")
    given = opened(f"{path}:alone").inputs
    assert isinstance(given, tuple) and given[0].shape == (2, 4)
    assert trueport.diagnose(f"{path}:alone").exportable
