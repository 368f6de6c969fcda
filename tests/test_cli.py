"""The command line: exit codes, one line on stderr, no traceback."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import EXAMPLES, Exported
from tests.forked import ENVIRONMENT as SETTINGS
from tests.forked import trueport_command as run

ENVIRONMENT = os.environ | SETTINGS


def started(*words: object) -> subprocess.CompletedProcess[str]:
    """``trueport WORDS`` in a process of its own: what ends before torch is imported starts no server to fork from."""
    given = [sys.executable, "-m", "trueport", *map(str, words)]
    return subprocess.run(given, capture_output=True, text=True, env=ENVIRONMENT, check=False)


def refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Exit code 2 and one line that holds these words."""
    assert done.returncode == 2, done
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1 and lines[0].startswith("trueport: "), done.stderr
    for word in words:
        assert word in lines[0]


def test_version() -> None:
    done = started("--version")
    assert (done.returncode, done.stdout) == (0, "trueport 0.1.0\n")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device")
def test_output_that_no_disk_has_room_for() -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "trueport", "--version"], stdout=full, stderr=subprocess.PIPE, text=True,
            env=ENVIRONMENT, check=False,
        )  # fmt: skip
    refused(done, "No space left. Free space")


@pytest.mark.parametrize("command", [[], ["export"], ["verify"], ["generate"]])
def test_help_names_the_options(command: list[str]) -> None:
    done = started(*command, "--help")
    assert done.returncode == 0
    assert {"export": "--allow-unproven", "verify": "--against", "generate": "--max-new-tokens"}.get(
        command[0] if command else "", "export"
    ) in done.stdout


def test_wrong_words(tmp_path: Path) -> None:
    refused(started("exprt"), "exprt", "--help")
    refused(started("export", "x", tmp_path / "out", "--frce"), "--frce", "--force")
    refused(started("export", "x"), "'out'")
    refused(started("export", "x", tmp_path / "out", "--opset", "many"), "--opset")


@pytest.mark.slow
def test_bad_places(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    refused(run("export", EXAMPLES / "t5-dates", tmp_path / "full", "--force"), "did not write")
    refused(run("export", EXAMPLES / "t5-dates", tmp_path / "out", "--to", "tflite"), "tflite", "onnx")
    refused(run("verify", tmp_path / "nothing"), "not a folder")
    refused(run("generate", tmp_path / "nothing", "text"), "nothing")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_an_unknown_model_is_one_line(tmp_path: Path) -> None:
    refused(run("export", "no-such/model", tmp_path / "out"), "no-such/model")


@pytest.mark.slow
def test_a_folder_that_is_no_model_is_one_line(tmp_path: Path) -> None:
    refused(run("export", tmp_path / "no" / "such" / "folder", tmp_path / "out"), "folder")
    (tmp_path / "empty").mkdir()
    refused(run("export", tmp_path / "empty", tmp_path / "out"), "config.json")


@pytest.mark.slow
def test_debug_shows_the_traceback(tmp_path: Path) -> None:
    done = run("verify", tmp_path / "nothing", "--debug")
    assert done.returncode == 2 and "Traceback" in done.stderr


@pytest.mark.slow
def test_verify_judges_and_names_clauses(exported: Exported, tmp_path: Path) -> None:
    done = run("verify", exported("llama-tales"), "--clauses", "causal,finite", "--json", tmp_path / "proof.json")
    assert done.returncode == 0, done.stderr
    assert "causal" in done.stdout and "finite" in done.stdout and "Proven" in done.stdout
    assert (tmp_path / "proof.json").is_file()
    refused(run("verify", exported("llama-tales"), "--clauses", "colour"), "colour", "padding")


@pytest.mark.slow
def test_verify_says_no_with_exit_code_1(copied: Exported) -> None:
    folder = copied("llama-tales")
    (folder / "config.json").write_text((folder / "config.json").read_text() + " ")
    done = run("verify", folder, "--clauses", "causal")
    assert done.returncode == 1
    assert "config.json" in done.stdout and "Not proven" in done.stdout


@pytest.mark.slow
def test_generate_streams(exported: Exported) -> None:
    done = run("generate", exported("t5-dates"), "the 3rd of May 1998")
    assert (done.returncode, done.stdout.strip()) == (0, "1998-05-03")


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_leaves_nothing(tmp_path: Path, number: signal.Signals, code: int) -> None:
    """Nor does SIGTERM, while the model is captured; pytest's workers may ignore the signal, so the child restores it."""
    script = (
        "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "import trueport.capture as c; real = c.capture\n"
        "def capture(component):\n    print('capturing', flush=True)\n    return real(component)\n"
        "c.capture = capture; from trueport.cli import main; main()"
    )
    words = [sys.executable, "-c", script, "export", str(EXAMPLES / "t5-dates"), str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None and process.stdout.readline() == "capturing\n"
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Interrupted" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_values_out_of_range_are_one_line(exported: Exported, tmp_path: Path) -> None:
    folder = exported("t5-dates")
    for option, value in (("--max-new-tokens", 0), ("--num-beams", 0), ("--temperature", 0), ("--top-k", -3)):
        refused(run("generate", folder, "x", option, value), option)
    refused(run("generate", folder, "x", "--seed", 2**64), "--seed")
    refused(run("generate", folder, "x", "--max-new-tokens", 2**62, "--num-beams", 2), "Out of memory")
    refused(run("verify", folder, "--seed", -1), "--seed")
    refused(run("verify", folder, "--clauses", ""), "clause")
    refused(run("verify", folder, "--clauses", "files"), "no clause to choose", "always asks files")
    refused(run("verify", folder, "--json", tmp_path / "no" / "such.json"), "such.json")
    refused(run("verify", folder, "--json", folder / "trueport.json"), "judged")
    (tmp_path / "link.json").symlink_to(tmp_path / "no" / "such.json")
    refused(
        run("verify", folder, "--json", tmp_path / "link.json", "--clauses", "finite"), "link.json cannot be written"
    )


@pytest.mark.slow
def test_a_reader_that_goes_away_is_not_a_verdict(exported: Exported) -> None:
    words = [sys.executable, "-m", "trueport", "verify", str(exported("llama-tales")), "--clauses", "causal"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        errors = process.stderr.read()
    assert process.returncode == 141 and errors == ""
