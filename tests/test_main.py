"""The command's process: how it begins and ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, Exported
from tests.forked import ENVIRONMENT as SETTINGS

ENVIRONMENT = os.environ | SETTINGS | {"PYTHONHASHSEED": "0"}


def started(main: str, behind: str = "") -> subprocess.CompletedProcess[str]:
    """A process whose command does what ``main`` says, in one line, and ``behind`` while Python ends."""
    script = (
        "import atexit, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import trueport.cli\nfrom trueport.__main__ import start\n"
        f"def main():\n    {main}\ntrueport.cli.main = main\n{behind}\nstart()"
    )
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=ENVIRONMENT, check=False)


def test_ctrl_c_while_python_ends_shows_no_traceback() -> None:
    """Who presses twice, or just behind the last line: libraries still tidy up, and Python shows what interrupts them."""
    done = started("raise SystemExit(130)", "atexit.register(signal.raise_signal, signal.SIGINT)")
    assert done.stderr == "" and done.returncode in (130, -signal.SIGINT)


def test_ctrl_c_while_the_first_is_answered_shows_no_traceback() -> None:
    done = started("raise KeyboardInterrupt")
    assert (done.stderr, done.returncode) == ("", 130)


def test_a_command_that_ends_does_not_look_for_garbage() -> None:
    """Among the objects of torch and transformers Python takes seconds for it, several of them beside other work: Ctrl-C was
    heard, and the shell still waited.
    """
    done = started("raise SystemExit(130)", "import gc\natexit.register(lambda: print(len(gc.get_objects()) < 10_000))")
    assert (done.stdout, done.returncode) == ("True\n", 130), done.stderr


def test_a_shell_in_a_folder_that_is_gone_is_told(tmp_path: Path) -> None:
    """Libraries end the process otherwise, with words of their own."""
    words = f"mkdir gone; cd gone; rmdir ../gone; exec '{sys.executable}' -m trueport patches"
    done = subprocess.run(
        ["sh", "-c", words], capture_output=True, text=True, env=ENVIRONMENT, check=False, cwd=tmp_path
    )
    assert done.returncode == 2
    assert done.stderr.startswith("trueport: The folder that this shell stands in is gone.") and "cd ." in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("words", ["optimize .", "optimize ..", f"export {EXAMPLES / 'llama-tales'} . --force"])
def test_a_shell_whose_folder_is_replaced_is_told(copied: Exported, words: str) -> None:
    """It stands in the old one, which is gone: whatever it asks there fails."""
    folder = copied("llama-tales")
    done = subprocess.run(
        [sys.executable, "-m", "trueport", *words.split()], capture_output=True, text=True, env=ENVIRONMENT,
        check=False, cwd=folder / "onnx" if words.endswith("..") else folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "`cd .` enters the new one" in done.stdout.splitlines()[-1]
